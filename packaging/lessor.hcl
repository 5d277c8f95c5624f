# lessor's configuration. After a change: systemctl restart lessor

# The data: an embedded store in a folder, which lessor's own user alone may read.
storage "pebble" {
  path = "/var/lib/lessor"
}

# What unseals the data: a key, made at the first start, outside of the data and in no backup of lessor's. KEEP A COPY OF IT
# ELSEWHERE. lessor also writes there: its anchor, which tells whether the data was put back to an earlier state.
seal "keyfile" {
  path = "/var/lib/lessor-seal/seal.key"
}

# Plain HTTP is for this machine only.
listener "tcp" {
  address     = "127.0.0.1:8200"
  tls_disable = true
}

# For others there is TLS. systemctl reload lessor reads renewed certificates. lessor's user must be able to read the files.
#
# listener "tcp" {
#   address       = "0.0.0.0:8200"
#   tls_cert_file = "/etc/lessor/tls/tls.crt"
#   tls_key_file  = "/etc/lessor/tls/tls.key"
# }
# api_addr = "https://lessor.example.org:8200"

# Refuse mounts, roles and secrets that nobody owns.
#
# require_owner = true
