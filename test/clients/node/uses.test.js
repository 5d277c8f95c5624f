// node-vault against lessor, through its main uses and the loops that its users write around it.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, test } from "node:test";
import nodeVault from "node-vault";

const endpoint = process.env.LESSOR_TEST_ADDR;
const connect = (token) => nodeVault({ apiVersion: "v1", endpoint, token });
// A client of its own for each call: node-vault takes over every token that an answer holds.
const root = () => connect(process.env.LESSOR_TEST_TOKEN);

// How long a loop is watched.
const lasting = Number(process.env.LESSOR_TEST_LOOPS) * 1000;
const perMinute = (n) => (n * lasting) / 60000;

// until waits for what is to come soon.
async function until(what, holds) {
  for (let i = 0; !(await holds()); i++) {
    assert.ok(i < 100, `${what} did not come`);
    await sleep(200);
  }
}

// leases are the ids of those under a prefix.
async function leases(prefix) {
  try {
    return (await root().request({ path: `/sys/leases/lookup/${prefix}`, method: "LIST" })).data.keys;
  } catch (err) {
    assert.equal(err.response?.statusCode, 404, err.message);
    return [];
  }
}

// refusal is what a call fails with: node-vault keeps the answer in the error.
async function refusal(call) {
  try {
    await call;
  } catch (err) {
    return { status: err.response?.statusCode, message: err.message };
  }
  assert.fail("the call succeeded");
}

test("status", async () => {
  const health = await root().health();
  assert.equal(health.initialized, true);
  assert.equal(health.sealed, false);
  assert.equal((await root().status()).sealed, false);
  assert.equal((await root().initialized()).initialized, true);
  assert.equal((await root().leader()).ha_enabled, false);
  const again = await refusal(root().init({ secret_shares: 1, secret_threshold: 1 }));
  assert.deepEqual(again, { status: 400, message: "Vault is already initialized" });
});

test("mounts and policies", async () => {
  await root().mount({ mount_point: "node-kv", type: "kv", options: { version: "1" }, description: "for node" });
  assert.equal((await root().mounts()).data["node-kv/"].description, "for node");
  await root().remount({ from: "node-kv", to: "node-kv2" });
  for (let i = 0; !("node-kv2/" in (await root().mounts()).data); i++) {
    assert.ok(i < 50, "the mount has not moved");
    await sleep(100);
  }
  await root().unmount({ mount_point: "node-kv2" });
  assert.ok(!("node-kv2/" in (await root().mounts()).data));
  await root().addPolicy({ name: "node", rules: 'path "secret/data/node/*" { capabilities = ["read"] }' });
  assert.match((await root().getPolicy({ name: "node" })).rules, /secret\/data\/node/);
  assert.ok((await root().policies()).policies.includes("node"));
  await root().removePolicy({ name: "node" });
  assert.equal((await refusal(root().getPolicy({ name: "node" }))).status, 404);
});

test("kv version 2", async () => {
  await root().write("secret/data/node/app", { data: { user: "u", n: 42, deep: { a: [1, "é", null] } } });
  const first = await root().read("secret/data/node/app");
  assert.deepEqual(first.data.data, { user: "u", n: 42, deep: { a: [1, "é", null] } });
  assert.equal(first.renewable, false);
  await root().update("secret/data/node/app", { data: { user: "v" } });
  assert.equal((await root().read("secret/data/node/app")).data.metadata.version, 2);
  assert.deepEqual((await root().list("secret/metadata/node")).data.keys, ["app"]);
  const cas = await refusal(root().write("secret/data/node/app", { data: { user: "w" }, options: { cas: 1 } }));
  assert.deepEqual(cas, { status: 400, message: "check-and-set parameter did not match the current version" });
  await root().delete("secret/data/node/app");
  assert.equal((await refusal(root().read("secret/data/node/app"))).status, 404);
  await root().destroySecretVersions({ path: "node/app", versions: [1] });
  assert.equal((await root().read("secret/metadata/node/app")).data.versions["1"].destroyed, true);
  await root().delete("secret/metadata/node/app");
  assert.equal((await refusal(root().list("secret/metadata/node"))).status, 404);
});

test("tokens", async () => {
  const made = await root().tokenCreate({ policies: ["default"], ttl: "1h", meta: { of: "node" } });
  const own = connect(made.auth.client_token);
  const self = await own.tokenLookupSelf();
  assert.equal(self.data.meta.of, "node");
  assert.equal((await root().tokenLookupAccessor({ accessor: made.auth.accessor })).data.id, "");
  assert.equal((await own.tokenRenewSelf({ increment: "2h" })).auth.lease_duration, 7200);
  assert.ok((await root().tokenAccessors()).data.keys.includes(made.auth.accessor));
  const child = await connect((await root().tokenCreateOrphan({ policies: ["default"] })).auth.client_token).tokenLookupSelf();
  assert.equal(child.data.orphan, true);
  await root().addTokenRole({ role_name: "node", allowed_policies: "default", orphan: true });
  assert.equal((await root().tokenCreateRole({ role_name: "node" })).auth.orphan, true);
  assert.deepEqual((await root().tokenRoles()).data.keys, ["node"]);
  await root().removeTokenRole({ role_name: "node" });
  await root().tokenRevokeAccessor({ accessor: made.auth.accessor });
  assert.equal((await refusal(own.tokenLookupSelf())).status, 403);
});

test("userpass", async () => {
  await root().enableAuth({ mount_point: "userpass", type: "userpass" });
  await root().write("auth/userpass/users/nina", { password: "a long password", token_policies: "default" });
  const client = connect("");
  const login = await client.userpassLogin({ username: "nina", password: "a long password" });
  assert.equal(client.token, login.auth.client_token); // node-vault keeps the token of a login
  assert.equal((await client.tokenLookupSelf()).data.display_name, "userpass-nina");
  const wrong = await refusal(connect("").userpassLogin({ username: "nina", password: "no" }));
  assert.deepEqual(wrong, { status: 400, message: "invalid username or password" });
  await root().disableAuth({ mount_point: "userpass" });
  assert.equal((await refusal(client.tokenLookupSelf())).status, 403);
});

test("approle with a wrapped secret id", async () => {
  await root().enableAuth({ mount_point: "approle", type: "approle" });
  await root().addApproleRole({ role_name: "node", token_policies: "default", secret_id_num_uses: 1, token_ttl: 600 });
  const { role_id } = (await root().getApproleRoleId({ role_name: "node" })).data;
  const wrapped = await root().request({
    path: "/auth/approle/role/node/secret-id", method: "POST", json: {}, headers: { "X-Vault-Wrap-TTL": "60s" },
  });
  const { secret_id } = (await connect(wrapped.wrap_info.token).unwrap()).data;
  const client = connect("");
  await client.approleLogin({ role_id, secret_id });
  assert.equal((await client.tokenLookupSelf()).data.meta.role_name, "node");
  const used = await refusal(connect("").approleLogin({ role_id, secret_id }));
  assert.equal(used.status, 400);
  const second = await refusal(connect(wrapped.wrap_info.token).unwrap());
  assert.equal(second.status, 400);
});

test("audit devices", async () => {
  await root().enableAudit({ name: "node", type: "file", options: { file_path: "discard" } });
  assert.equal((await root().audits()).data["node/"].type, "file");
  await root().disableAudit({ name: "node" });
  assert.ok(!("node/" in ((await root().audits()).data ?? {})));
});

// node-vault has no watcher: these are the loops that its users write, all at once.
describe("loops", { concurrency: true }, () => {
  // A reader that re-reads when its lease is over must not loop, nor keep an old version. There is a new one every three seconds.
  test("a loop that re-reads a secret by its lease", async () => {
    await root().mount({ mount_point: "node-fast", type: "kv", options: { version: "2", lease_duration: "1s" } });
    let version = 0;
    let written = 0;
    let reads = 0;
    for (const end = Date.now() + lasting; Date.now() < end; ) {
      if (Date.now() - written > 3000) {
        await root().write("node-fast/data/app", { data: { n: ++version } });
        written = Date.now();
      }
      const answer = await root().read("node-fast/data/app");
      reads++;
      assert.equal(answer.data.data.n, version);
      assert.equal(answer.lease_duration, 1);
      assert.equal(answer.renewable, false);
      await sleep(answer.lease_duration * 1000);
    }
    assert.ok(version >= 3, `${version} versions`);
    assert.ok(reads >= perMinute(30) && reads <= perMinute(60) + 1, `${reads} reads`);
    const left = await leases("node-fast/data/app");
    assert.ok(left.length >= 1 && left.length <= version, `${left.length} leases for ${version} versions and one reader`);
  });

  // A program that logs in, renews its token until no renewal makes it longer, and logs in again.
  test("a loop that renews its token and logs in again", async () => {
    await root().enableAuth({ mount_point: "node-approle", type: "approle" });
    await root().write("auth/node-approle/role/loop", { token_policies: "default", token_ttl: 4, token_max_ttl: 12 });
    const { role_id } = (await root().read("auth/node-approle/role/loop/role-id")).data;
    const { secret_id } = (await root().write("auth/node-approle/role/loop/secret-id")).data;
    const login = async () => (await connect("").approleLogin({ role_id, secret_id, mount_point: "node-approle" })).auth;
    const accessors = [];
    let renewals = 0;
    let auth;
    for (const end = Date.now() + lasting; Date.now() < end; ) {
      if (!auth) {
        auth = await login();
        accessors.push(auth.accessor);
      }
      const own = connect(auth.client_token);
      assert.equal((await own.tokenLookupSelf()).data.accessor, auth.accessor);
      await sleep(auth.lease_duration * 500);
      const renewed = (await own.tokenRenewSelf({ increment: "4s" })).auth;
      renewals++;
      auth = renewed.lease_duration < 4 ? undefined : { ...renewed, client_token: auth.client_token };
    }
    assert.equal(new Set(accessors).size, accessors.length);
    assert.ok(accessors.length >= perMinute(4) && accessors.length <= perMinute(10) + 1, `${accessors.length} logins`);
    assert.ok(renewals >= perMinute(15) && renewals <= perMinute(40) + 1, `${renewals} renewals`);
    await until("the end of all tokens", async () => {
      const living = (await root().tokenAccessors()).data.keys;
      return !accessors.some((a) => living.includes(a));
    });
  });

  test("a loop that renews database credentials until their maximum", async () => {
    await root().mount({ mount_point: "database", type: "database" });
    await root().write("database/config/pg", {
      plugin_name: "postgresql-database-plugin",
      allowed_roles: "node",
      connection_url: process.env.LESSOR_TEST_POSTGRES.replace("admin@", "{{username}}:{{password}}@"),
      username: "admin",
      password: "unused",
    });
    await root().write("database/roles/node", {
      db_name: "pg",
      default_ttl: "2s",
      max_ttl: "7s",
      creation_statements: `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
    });
    let lease = await root().generateDatabaseCredentials({ databasePath: "database", name: "node" });
    const users = new Set([lease.data.username]);
    let renewals = 0;
    for (const end = Date.now() + lasting; Date.now() < end; ) {
      assert.ok((await leases("database/creds/node")).length <= 2, "one loop has many leases at once");
      await sleep(Math.max(lease.lease_duration * 500, 250));
      try {
        const renewed = await root().renew({ lease_id: lease.lease_id, increment: 2 });
        renewals++;
        if (renewed.lease_duration >= 2) {
          lease = { ...lease, lease_duration: renewed.lease_duration };
          continue;
        }
      } catch (err) {
        assert.equal(err.response?.statusCode, 400, err.message);
      }
      lease = await root().generateDatabaseCredentials({ databasePath: "database", name: "node" }); // close to its maximum: a fresh one
      users.add(lease.data.username);
    }
    assert.ok(users.size >= perMinute(6) && users.size <= perMinute(20) + 1, `${users.size} credentials`);
    assert.ok(renewals >= perMinute(20) && renewals <= perMinute(120), `${renewals} renewals`);
    await until("the end of all leases", async () => (await leases("database/creds/node")).length === 0);
    await root().unmount({ mount_point: "database" });
  });
});
