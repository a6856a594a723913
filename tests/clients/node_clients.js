// node-redis and ioredis against a running node: their defaults, both protocols, a long pipeline, a transaction.
'use strict';

const assert = require('node:assert');
const { createClient } = require('redis');
const Redis = require('ioredis');

const port = Number(process.argv[2]);

async function nodeRedis(protocol) {
  const options = { socket: { host: '127.0.0.1', port } };
  if (protocol) options.RESP = protocol;
  const client = createClient(options);
  client.on('error', (error) => { throw error; });
  await client.connect();
  const name = `node-redis:${protocol}`;
  assert.equal(await client.set(name, '1', { EX: 100 }), 'OK');
  assert.equal(await client.incr(name), 2);
  assert.equal(await client.get('missing'), null);
  // Commands of one turn of the event loop go out as one pipeline.
  const replies = await Promise.all(Array.from({ length: 10000 }, (_, n) => client.set(`${name}:${n % 100}`, String(n))));
  assert(replies.every((reply) => reply === 'OK'));
  assert.deepEqual(await client.multi().incr(name).get(name).exec(), [3, '3']);
  const token = Number(await client.sendCommand(['LOCK', `${name}:lock`, 'me']));
  assert(token > 0);
  assert.equal(await client.sendCommand(['LOCK', `${name}:lock`, 'you']), null);
  assert.match(await client.info('server'), /redis_version:[0-9.]+\r\n/);
  await assert.rejects(client.incr(`${name}:lock`), /WRONGTYPE/);
  client.destroy();
  console.log(`node-redis, RESP ${protocol || 'default'}: ok`);
}

async function ioRedis(protocol) {
  const client = new Redis({ host: '127.0.0.1', port, ...(protocol ? { protocol } : {}) });
  const name = `ioredis:${protocol}`;
  assert.equal(await client.set(name, '1', 'EX', 100), 'OK');
  assert.equal(await client.incr(name), 2);
  assert.equal(await client.get('missing'), null);
  const pipeline = client.pipeline();
  for (let n = 0; n < 10000; n += 1) pipeline.set(`${name}:${n % 100}`, String(n));
  const replies = await pipeline.exec();
  assert.equal(replies.length, 10000);
  assert(replies.every(([error, reply]) => error === null && reply === 'OK'));
  assert.deepEqual(await client.multi().incr(name).get(name).exec(), [[null, 3], [null, '3']]);
  assert((await client.call('LOCK', `${name}:lock`, 'me')) > 0);
  assert.equal(await client.call('LOCK', `${name}:lock`, 'you'), null);
  await assert.rejects(client.incr(`${name}:lock`), /WRONGTYPE/);
  await client.quit();
  console.log(`ioredis, protocol ${protocol || 'default'}: ok`);
}

(async () => {
  for (const protocol of [undefined, 2, 3]) await nodeRedis(protocol);
  for (const protocol of [undefined, 2, 3]) await ioRedis(protocol);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
