// The README's JavaScript examples against a running node, as they stand but for the port.
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const path = require('node:path');

const port = process.argv[2];
const readme = fs.readFileSync(path.join(__dirname, '..', '..', 'README.md'), 'utf8');
const examples = [...readme.matchAll(/^```js\n(.*?)^```$/gms)].map((match) => match[1].replaceAll('6379', port));
assert(examples.length >= 1, 'the README has no JavaScript example');

// What the examples leave to the eye.
const checks = `
assert.equal(held.token > 0 && (await redis.get('order:9912')), 'paid');
assert.equal(await redis.exists('lock:order:9912'), 0);
assert.equal(address, 'http://10.0.0.1:80');
assert.equal(tokens.length, 2);
assert.deepEqual(first, again);
assert.equal(await redis.get('node:payments'), '1');
assert.equal(handled, 2);
assert.equal(await redis.call('QLEN', 'node:dead'), 1);
assert.equal(await redis.get('node:order'), 'paid');
const renewed = await lock('lock:renewed:node', 300);
await new Promise((resolve) => setTimeout(resolve, 1000));
assert(renewed.isHeld(), 'it was renewed');
assert.equal(await renewed.release(), 1);
await assert.rejects(redis.call('SET', 'order:9912', 'late', 'FENCE', held.key, held.token), /STALETOKEN/);
await redis.quit();
`;

const AsyncFunction = Object.getPrototypeOf(async () => {}).constructor;
new AsyncFunction('require', 'assert', examples.join('\n') + checks)(require, assert).then(
  () => console.log(`README, JavaScript: ${examples.length} examples: ok`),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
