// Does one case after another of a client's program: a line of JSON says which, a line of JSON says what it told.
// Run as `node run.mjs PROGRAM`. Where a guide's code is run, what it logs is what it told.
import { mkdirSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { format } from "node:util";

const program = await import(pathToFileURL(process.argv[2]));
const answers = process.stdout.write.bind(process.stdout);
console.log = console.warn = console.info = console.error;

async function shown(code) {
  // Beside the installed packages, so that its imports find them.
  const directory = new URL("./node_modules/.guides/", import.meta.url);
  mkdirSync(directory, { recursive: true });
  const file = new URL(`guide-${process.pid}-${performance.now()}.mjs`, directory);
  writeFileSync(file, code);
  const lines = [];
  const before = { log: console.log, write: process.stdout.write };
  console.log = (...words) => lines.push(format(...words));
  process.stdout.write = (text) => (lines.push(String(text)), true);
  try {
    await import(file);
  } finally {
    console.log = before.log;
    process.stdout.write = before.write;
  }
  return lines.join("\n");
}

async function answer({ code, case: name, base_url: baseUrl, api_key: apiKey, model }) {
  try {
    if (code !== undefined) return { told: await shown(code) };
    return { told: await program[name]({ baseUrl, v1: `${baseUrl}/v1`, apiKey, model }) };
  } catch (error) {
    return { failed: error?.stack ?? String(error) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  answers(JSON.stringify(await answer(JSON.parse(line))) + "\n");
}
process.exit(0);
