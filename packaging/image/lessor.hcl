# The image's configuration; mount your own over it to change it.

storage "pebble" {
  path = "/var/lib/lessor"
}

seal "keyfile" {
  path = "/var/lib/lessor-seal/seal.key"
}

# For everybody: mount the certificate and its key (readable by user 65532).
listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/etc/lessor/tls/tls.crt"
  tls_key_file  = "/etc/lessor/tls/tls.key"
}

# For the health check and for commands run inside the container.
listener "tcp" {
  address     = "127.0.0.1:8201"
  tls_disable = true
}
