// An app written for Dapr's lock, with the SDK from npm over HTTP. Arguments: the port, a store, a resource.
const assert = require("node:assert/strict");
const { DaprClient } = require("@dapr/dapr");
const { LockStatus } = require("@dapr/dapr/types/lock/UnlockResponse");

async function main([daprPort, store, resource]) {
  const client = new DaprClient({ daprHost: "127.0.0.1", daprPort });

  assert.deepEqual(await client.lock.lock(store, resource, "first", 60), { success: true });
  // Held: by another, and by the same owner.
  assert.deepEqual(await client.lock.lock(store, resource, "second", 60), { success: false });
  assert.deepEqual(await client.lock.lock(store, resource, "first", 60), { success: false });
  assert.deepEqual(await client.lock.unlock(store, resource, "second"), { status: LockStatus.LockBelongsToOthers });
  assert.deepEqual(await client.lock.unlock(store, resource, "first"), { status: LockStatus.Success });
  assert.deepEqual(await client.lock.unlock(store, resource, "first"), { status: LockStatus.LockDoesNotExist });
  assert.deepEqual(await client.lock.lock(store, resource, "second", 60), { success: true });
  assert.deepEqual(await client.lock.unlock(store, resource, "second"), { status: LockStatus.Success });

  await assert.rejects(client.lock.lock("no-such-store", resource, "first", 60), /ERR_LOCK_STORE_NOT_FOUND/);
  const metadata = await client.metadata.get();
  assert.deepEqual(metadata.components.map(({ name }) => name), [store]);
  await client.stop();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
