#!/usr/bin/env bash
# ai 7.0.173 with @ai-sdk/openai-compatible 3.0.92, node 20, seen on 2026-11-29.
# A chat stream that fails sends OpenAI's error event. `for await (... of result.textStream)` then
# ends like one that succeeded, and `await result.text` resolves to the truncated text. Only the
# callback onError (by default one console.error) and finishReason "error" tell. A connection that
# is cut without a word throws: the politer end is the quieter one.
# Output: "Half a, error", "threw". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
npm install --silent --no-audit --no-fund --prefix "$dir" \
  ai@7.0.173 @ai-sdk/openai-compatible@3.0.92 > /dev/null
cat > "$dir/show.mjs" <<'JAVASCRIPT'
import http from "node:http";
import { streamText } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

let polite;
const event = (value) => `data: ${JSON.stringify(value)}\n\n`;
const server = http.createServer((request, response) => {
  request.resume().on("end", () => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(event({ id: "c", object: "chat.completion.chunk", created: 1, model: "m",
      choices: [{ index: 0, delta: { role: "assistant", content: "Half a" } }] }));
    const failure = { message: "The model failed.", type: "server_error", param: null, code: null };
    setTimeout(() => (polite ? response.end(event({ error: failure })) : request.socket.end()), 50);
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;
const model = createOpenAICompatible({ name: "x", baseURL })("m");
for (polite of [true, false]) {
  try {
    const result = streamText({ model, prompt: "Say something.", maxRetries: 0, onError() {} });
    for await (const _ of result.textStream);
    console.log(`${await result.text}, ${await result.finishReason}`);
  } catch {
    console.log("threw");
  }
}
process.exit(0);
JAVASCRIPT
got="$(cd "$dir" && node show.mjs)"
echo "$got"
[ "$got" = $'Half a, error\nthrew' ]
