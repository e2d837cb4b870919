// An Azure blob service (Azurite) for tests, with one container: prints its port, and serves until standard input ends.
//
//     node azure_server.mjs AZURITE CONTAINER [PERMISSIONS…]
//
// For each of PERMISSIONS, such as `rl` for reading and listing, it also prints a SAS token of the account with no others.
//
// AZURITE is the folder that tests/servers/azurite.sh printed. Account and key are the published ones of the
// emulator.

import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { createInterface } from 'node:readline';

const ACCOUNT = 'devstoreaccount1';
const KEY = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';

/** Makes a container. */
async function create(port, container) {
  const headers = { 'x-ms-date': new Date().toUTCString(), 'x-ms-version': '2021-12-02' };
  const signed = Object.entries(headers).map(([name, value]) => `${name}:${value}\n`);
  const resource = `/${ACCOUNT}/${ACCOUNT}/${container}\nrestype:container`;
  const text = `PUT${'\n'.repeat(12)}${signed.join('')}${resource}`;
  const signature = createHmac('sha256', Buffer.from(KEY, 'base64')).update(text, 'utf8').digest('base64');
  const answer = await fetch(`http://127.0.0.1:${port}/${ACCOUNT}/${container}?restype=container`, {
    method: 'PUT',
    headers: { ...headers, authorization: `SharedKey ${ACCOUNT}:${signature}` },
  });
  if (!answer.ok) throw new Error(`${answer.status}: ${await answer.text()}`);
}

/** A SAS token for everything in the account, with these permissions. */
function sas(permissions) {
  const [version, end, protocols] = ['2021-12-02', '2099-01-01T00:00:00Z', 'https,http'];
  const text = [ACCOUNT, permissions, 'b', 'co', '', end, '', protocols, version, '', ''].join('\n');
  const signature = createHmac('sha256', Buffer.from(KEY, 'base64')).update(text, 'utf8').digest('base64');
  const token = { sv: version, ss: 'b', srt: 'co', sp: permissions, se: end, spr: protocols, sig: signature };
  return new URLSearchParams(token).toString();
}

const [azurite, container, ...permissions] = process.argv.slice(2);
const main = `${azurite}/node_modules/azurite/dist/src/blob/main.js`;
const options = ['--blobPort', '0', '--inMemoryPersistence', '--skipApiVersionCheck', '--disableTelemetry'];
const server = spawn(process.execPath, [main, ...options], { stdio: ['ignore', 'pipe', 'inherit'] });
server.on('exit', (code) => process.exit(code ?? 1));
process.on('exit', () => server.kill());
process.stdin.on('end', () => process.exit()).resume();
for await (const line of createInterface(server.stdout)) {
  const port = /listens on http:\/\/127\.0\.0\.1:(\d+)/.exec(line)?.[1];
  if (port) {
    await create(port, container);
    console.log([port, ...permissions.map(sas)].join('\n'));
  }
}
