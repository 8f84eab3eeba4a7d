#!/usr/bin/env node
// stream: [node, bin/worker.mjs]
import { createInterface } from 'node:readline';

console.log = console.info = console.error;    // standard output is for answers; what is logged goes to the log

class Unusable extends Error {}

async function handle(type, message) {
    if (!message.name) {
        throw new Unusable('the message has no name');
    }
    console.log(`greeting ${message.name}`);
    return `hello ${message.name}`;
}

for await (const line of createInterface({ input: process.stdin })) {
    let message, answer;
    try {
        message = JSON.parse(line);
        answer = { ok: true, result: await handle(message.type, message.body) };
    } catch (error) {
        const retry = message !== undefined && !(error instanceof Unusable);    // a line that cannot be read will not be later
        answer = { error: String(error.message), class: error.constructor.name, retry };
    }
    process.stdout.write(`${JSON.stringify({ id: message?.id, ...answer })}\n`);
}
