#!/usr/bin/env bash
# openai 7.59.0 for JavaScript, node 20, seen on 2026-11-29.
# A 429 with `Retry-After: 3` is sent again after 3 s. With `Retry-After: 61` the client does not
# wait longer: it ignores the header and comes back after about half a second. So asking for more
# patience gets less. (openai for Python waits the 61 s.)
# Output: "3: patient", "61: within 2 s". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
npm install --silent --no-audit --no-fund --prefix "$dir" openai@7.59.0 > /dev/null
cat > "$dir/show.mjs" <<'JAVASCRIPT'
import http from "node:http";
import OpenAI from "openai";

let wait, times;
const answer = { id: "c", object: "chat.completion", created: 1, model: "m",
  choices: [{ index: 0, message: { role: "assistant", content: "x" }, finish_reason: "stop" }] };
const server = http.createServer((request, response) => {
  request.resume().on("end", () => {
    times.push(Date.now());
    const head = { "content-type": "application/json" };
    if (times.length > 1) return response.writeHead(200, head).end(JSON.stringify(answer));
    response.writeHead(429, { ...head, "retry-after": wait }).end('{"error":{"message":"busy"}}');
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const client = new OpenAI({ apiKey: "k", baseURL: `http://127.0.0.1:${server.address().port}/v1` });
for (wait of ["3", "61"]) {
  times = [];
  await client.chat.completions.create({ model: "m", messages: [{ role: "user", content: "x" }] });
  console.log(`${wait}: ${times[1] - times[0] < 2000 ? "within 2 s" : "patient"}`);
}
process.exit(0);
JAVASCRIPT
got="$(cd "$dir" && node show.mjs)"
echo "$got"
[ "$got" = $'3: patient\n61: within 2 s' ]
