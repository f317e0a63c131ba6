// One request on its way: where it is, why it waits, and which replicas were candidates for it.
import { block, ClassName, count, html, keyOf, reason, seconds } from "./words.js";

const placeOf = (scheduling, ended, key) => {
  const waiting = scheduling?.queue.find((request) => keyOf(request) === key);
  if (waiting) return { place: "pool", request: waiting };
  const running = scheduling?.batch?.find((request) => keyOf(request) === key);
  if (running) return { place: "engine", request: running };
  const over = ended?.find((request) => keyOf(request) === key);
  return over ? { place: "ended", request: over } : null;
};

const steps = ({ place, request }, replica, isGateway) => {
  if (place === "pool") {
    const ahead = request.position - 1;
    return [
      ["where", `in the pool of ${replica}, place ${request.position}`],
      ["waits for", seconds(request.waited_s)],
      ["why", `${ahead ? `${ahead} before it by rank and arrival; ` : ""}${request.blocked_by ? block(request.blocked_by, isGateway) : "its turn comes next"}`],
      ["first token", request.first_token_in_s == null ? `not predicted: ${isGateway ? "no engine is there" : "nothing was measured yet"}` : `predicted in ${seconds(request.first_token_in_s)}`],
      ["target", request.due_in_s == null ? "none" : request.due_in_s < 0 ? `missed ${seconds(-request.due_in_s)} ago` : `due in ${seconds(request.due_in_s)}`],
      ["rejected", request.given_up_in_s == null ? "never by time" : `in ${seconds(request.given_up_in_s)}, if it still waits`],
    ];
  }
  if (place === "engine") {
    return [
      ["where", `in the engine of ${replica}`],
      ["age", seconds(request.age_s)],
      ["waited", `${seconds(request.waited_s)} in the pool${request.by_min_share ? "; it went before a higher class on its minimum share" : ""}`],
      ["now", request.began ? `answers: ${count(request.output_tokens)} tokens so far` : "its prompt is computed"],
      ["first token", request.began ? "sent" : request.first_token_in_s == null ? "not predicted" : `predicted in ${seconds(request.first_token_in_s)}`],
      ["target", request.due_in_s == null ? (request.began ? "no longer counts" : "none") : `due in ${seconds(request.due_in_s)}`],
    ];
  }
  return [
    ["where", request.sent_to ? `ended; it was sent on to ${request.sent_to}` : `ended at ${replica}`],
    ["how", reason(request.outcome)],
    ["code", request.outcome],
    ["when", `${seconds(request.ago_s)} ago, at an age of ${seconds(request.age_s)}`],
    ["first token", request.ttft_s == null ? "none was sent" : `after ${seconds(request.ttft_s)}`],
  ];
};

// What a sidecar says of it, in a line; the replica that is shown says more above.
const said = (request) => {
  const came = request.was_forwarded ? "came from another sidecar; " : "";
  if (request.waits) {
    const { position, waited_s, blocked_by } = request.waits;
    const why = blocked_by ? `: ${block(blocked_by)}` : "";
    return `${came}waits at place ${position}, for ${seconds(waited_s)}${why}`;
  }
  if (request.runs) return `${came}is in the engine: ${request.runs.began ? "it answers" : "its prompt is computed"}`;
  return request.forwarded_to ? `${came}was sent on to ${request.forwarded_to}` : `${came}arrives, or only asks`;
};

const saidOfEnd = (request) =>
  `ended ${seconds(request.ago_s)} ago${request.forwarded_to ? `, sent on to ${request.forwarded_to}` : ""}: ${reason(request.outcome)}`;

const lines = (reports, shown) =>
  reports.filter((report) => report.pod !== shown).flatMap((report) => [
    ...(report.requests ?? []).map((each) => [report.pod, said(each)]),
    ...(report.ended ?? []).map((each) => [report.pod, saidOfEnd(each)]),
  ]);

const ROUTED = {
  best: "the lowest score",
  alone: "there was no other to choose",
  "hop-limit": "it had been forwarded as often as a request may be",
  "no-engine-here": "the sidecar that it reached has no engine",
  "sooner-there": "it would begin sooner there than where it waited",
};

const PARTS = [
  ["wait_ms", "wait", "from its arrival there to its first token"],
  ["recompute_ms", "prefix", "for cached prefix tokens that another replica has and this one lacks"],
  ["decode_ms", "decodes", "for the decodes beside which it would run"],
  ["room_ms", "room", "for scarce slots or KV room"],
  ["hop_ms", "hop", "the way there and back"],
];

const milliseconds = (value) => seconds((value ?? 0) / 1000);

// Of several decisions, for clients may use an id twice, each is a table.
const decisions = (reports) =>
  reports.flatMap((report) =>
    [...(report.requests ?? []), ...(report.ended ?? [])]
      .filter((each) => each.candidates?.length)
      .map((each) => ({ ...each, pod: report.pod })),
  );

const Decision = ({ pod, routed, forwarded_to, candidates }) => html`
  <section class="decision" aria-label=${`Candidates at ${pod}`}>
    <h4>Candidates, as ${pod} saw them</h4>
    <p class="quiet">chosen: ${forwarded_to || pod}${routed ? `, for ${ROUTED[routed] ?? routed}` : ""}</p>
    <div class="scrolled"><table>
      <thead><tr><th scope="col">replica</th><th scope="col" class="number">score</th>
        ${PARTS.map(([, name, why]) => html`<th scope="col" class="number" title=${why}>${name}</th>`)}
        <th scope="col">in time</th></tr></thead>
      <tbody>${[...candidates]
        .sort((one, other) => one.score_ms - other.score_ms)
        .map(
          (each) => html`
            <tr key=${each.replica} class=${each.replica === (forwarded_to || pod) ? "chosen" : ""}>
              <th scope="row">${each.replica}</th>
              <td class="number">${milliseconds(each.score_ms)}</td>
              ${PARTS.map(([part]) => html`<td class="number">${milliseconds(each[part])}</td>`)}
              <td>${each.feasible ? "yes" : "late"}</td>
            </tr>`,
        )}</tbody>
    </table></div>
  </section>`;

const unseen = (reports) => {
  if (reports === null) return "the sidecars are asked";
  return reports.length ? "no longer among those that are remembered" : "no sidecar answers";
};

export const Way = ({ opened, reports, replica, classes, close }) => {
  const { held, ended } = replica.state ?? {};
  const scheduling = replica.state?.scheduling ?? held;
  const found = placeOf(scheduling, ended, keyOf(opened));
  const request = found?.request ?? opened;
  const told = lines(reports ?? [], found && replica.name);
  const shown = found ? steps(found, replica.name, !!held) : told.length ? [] : [["where", unseen(reports)]];
  return html`
    <aside class="way" role="region" aria-labelledby="way" tabindex="-1">
      <header><h3 id="way">${request.class && html`<${ClassName} classes=${classes} name=${request.class} /> `}request</h3>
        <button class="close" onClick=${close} aria-label="Close the request">✕</button></header>
      <dl>
        <div><dt>id</dt><dd class="id">${request.id}</dd></div>
        ${request.tenant && html`<div><dt>tenant</dt><dd>${request.tenant}</dd></div>`}
        ${request.prompt_tokens != null && html`<div><dt>prompt</dt><dd>about ${count(request.prompt_tokens)} tokens</dd></div>`}
        ${request.preempted > 0 && html`<div><dt>preempted</dt><dd>${count(request.preempted)} times</dd></div>`}
        ${[...shown, ...told].map(
          ([name, value], at) => html`<div key=${`${at} ${name}`}><dt>${name}</dt><dd>${value}</dd></div>`,
        )}
      </dl>
      ${decisions(reports ?? []).map((each, at) => html`<${Decision} key=${at} ...${each} />`)}
    </aside>`;
};
