// One replica alive: what waits, what the scheduler does about it, the batch, and how requests end.
import { block, ClassName, classStyle, count, html, keyOf, reason, seconds, Shape, Skip, UNKNOWN } from "./words.js";

const SHED = /^(rejected|cut)/;

const Mark = ({ request, classes, open, place, chosen }) => {
  const style = classStyle(classes, request.class);
  const hollow = place === "engine" && !request.began;
  const told = {
    pool: () => `waits for ${seconds(request.waited_s)}`,
    engine: () => (request.began ? `answers, ${count(request.output_tokens)} tokens so far` : "its prompt is computed"),
  }[place]();
  return html`
    <button class="mark" data-id=${keyOf(request)} aria-pressed=${chosen === keyOf(request)}
      aria-label=${`${request.class} request of ${request.tenant}: ${told}`}
      title=${`${request.class} · ${request.tenant} · ${told}`} onClick=${() => open(request)}>
      <${Shape} style=${style} hollow=${hollow} />
    </button>`;
};

const Meter = ({ name, value, most, shown }) => html`
  <div class="measure">
    <span>${name}</span><b>${shown}</b>
    <svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
      <rect class="meter-room" width="100" height="6" rx="2" />
      <rect class="meter-fill" width=${most ? Math.min(100, (100 * (value ?? 0)) / most) : 0} height="6" rx="2" />
    </svg>
  </div>`;

const Pool = ({ scheduling, classes, open, chosen }) => {
  const queue = scheduling.queue;
  return html`
    <div class="stage" role="group" aria-labelledby="pool">
      <h3 id="pool">Request pool <b>${count(scheduling.waiting)}</b></h3>
      <${Skip} to="scheduler" what="what waits" of=${queue} />
      ${scheduling.classes.map((each) => {
        const marks = queue.filter((request) => request.class === each.name);
        const more = each.waiting - marks.length;
        return html`
          <div class="lane" key=${each.name}>
            <div class="lane-head"><${ClassName} classes=${classes} name=${each.name} />
              <span>${count(each.waiting)} wait${each.waiting === 1 ? "s" : ""}</span></div>
            <div class="marks">
              ${marks.map((request) => html`<${Mark} key=${keyOf(request)} request=${request}
                classes=${classes} open=${open} place="pool" chosen=${chosen} />`)}
              ${more > 0 && html`<span class="quiet">+ ${count(more)}</span>`}
            </div>
          </div>`;
      })}
    </div>`;
};

const Scheduler = ({ scheduling, classes, isGateway }) => {
  const [first] = scheduling.queue;
  const counts = scheduling.counts;
  return html`
    <div class="stage" role="group" aria-labelledby="scheduler">
      <h3 id="scheduler">Scheduler</h3>
      <p class="says">${
        !first
          ? `Nothing waits: requests go to ${isGateway ? "a replica" : "the engine"} as they come.`
          : html`Next: <${ClassName} classes=${classes} name=${first.class} /> of ${first.tenant}. ${
              first.blocked_by ? `It waits: ${block(first.blocked_by, isGateway)}.` : "It goes as soon as its turn comes."
            }`
      }</p>
      <dl class="counts">
        ${!isGateway && html`
          <div><dt>sent to the engine</dt><dd>${count(counts.dispatched)}</dd></div>
          <div><dt>finished</dt><dd>${count(counts.finished)}</dd></div>
          <div><dt>preempted</dt><dd>${count(counts.preempted)}</dd></div>`}
        <div><dt>rejected</dt><dd>${count(Object.values(counts.rejected).reduce((a, b) => a + b, 0))}</dd></div>
      </dl>
    </div>`;
};

const Batch = ({ scheduling, row, classes, open, chosen }) => {
  const engine = scheduling.engine;
  const more = scheduling.at_engine - scheduling.batch.length;
  return html`
    <div class="stage" role="group" aria-labelledby="batch">
      <h3 id="batch">Engine's batch <b>${count(scheduling.at_engine)}</b></h3>
      <${Meter} name="slots" value=${scheduling.at_engine} most=${engine.max_num_seqs}
        shown=${`${count(scheduling.at_engine)} of ${count(engine.max_num_seqs)}`} />
      <${Meter} name="KV cache" value=${scheduling.kv_tokens} most=${engine.kv_capacity_tokens}
        shown=${engine.kv_capacity_tokens ? `${count(scheduling.kv_tokens)} of ${count(engine.kv_capacity_tokens)} tokens` : `${count(scheduling.kv_tokens)} tokens`} />
      <${Skip} to="predictions" what="what runs" of=${scheduling.batch} />
      <div class="marks">
        ${scheduling.batch.map((request) => html`<${Mark} key=${keyOf(request)} request=${request}
          classes=${classes} open=${open} place="engine" chosen=${chosen} />`)}
        ${more > 0 && html`<span class="quiet">+ ${count(more)}</span>`}
      </div>
      <p class="quiet">hollow: its prompt is computed · filled: it answers${
        row?.output_tokens_s != null ? html` · ${count(row.output_tokens_s)} tokens a second` : ""
      }</p>
    </div>`;
};

const verdict = (request) => {
  if (request.first_token_in_s == null || request.due_in_s == null) return UNKNOWN;
  return request.first_token_in_s <= request.due_in_s ? "on time" : "late";
};

const Predictions = ({ scheduling, classes, open }) => {
  const expected = [...scheduling.batch, ...scheduling.queue]
    .filter((request) => request.first_token_in_s != null)
    .sort((one, other) => one.first_token_in_s - other.first_token_in_s)
    .slice(0, 8);
  return html`
    <div class="stage" role="group" aria-labelledby="predictions">
      <h3 id="predictions">Predicted first tokens</h3>
      ${
        expected.length
          ? html`<table>
              <thead><tr><th scope="col">request</th><th scope="col" class="number">in</th>
                <th scope="col" class="number">due in</th><th scope="col"></th></tr></thead>
              <tbody>${expected.map(
                (request) => html`
                  <tr key=${keyOf(request)}>
                    <td><button class="link" onClick=${() => open(request)}
                      aria-label=${`${request.class} request of ${request.tenant}`}>
                      <${ClassName} classes=${classes} name=${request.class} /></button></td>
                    <td class="number">${request.first_token_in_s < 0 ? "now" : seconds(request.first_token_in_s)}</td>
                    <td class="number">${seconds(request.due_in_s)}</td>
                    <td class=${verdict(request) === "late" ? "late" : ""}>${verdict(request)}</td>
                  </tr>`,
              )}</tbody>
            </table>`
          : html`<p class="quiet">No first token is awaited.</p>`
      }
    </div>`;
};

const Ended = ({ ended, classes, open }) => html`
  <div class="stage" role="group" aria-labelledby="ended">
    <h3 id="ended">Ended last</h3>
    ${ended.length === 0 && html`<p class="quiet">Nothing ended yet.</p>`}
    <ul class="ended">
      ${ended.map(
        (each) => html`
          <li key=${keyOf(each)} class=${SHED.test(each.outcome) ? "shed" : ""}>
            <button class="link" onClick=${() => open(each)}>
              <${ClassName} classes=${classes} name=${each.class} />
              <span class="why">${reason(each.outcome)}</span>
            </button>
            <span class="quiet">${seconds(each.ago_s)} ago</span>
          </li>`,
      )}
    </ul>
  </div>`;

// What is shown at a time: served requests would push out why others were refused.
const shown = (ended) => [
  ...ended.filter((each) => each.outcome !== "ok").slice(0, 6),
  ...ended.filter((each) => each.outcome === "ok").slice(0, 4),
];

const nothing = (row, state, fleet) => {
  if (row && !row.answers) return `${row.name} does not answer: ${row.state}.`;
  if (row) return state ? "Its engine has not been here yet." : "Its sidecar has not told its requests.";
  return fleet.gateways.length
    ? "No replica runs now: requests wait at the gateway, and the first one wakes the service."
    : "No replica runs now.";
};

const Alive = ({ state, scheduling, row, classes, open, chosen, old }) => html`
  <div class=${`flow${state.held ? " of-gateway" : ""}${old ? " old" : ""}`}>
    <${Pool} scheduling=${scheduling} classes=${classes} open=${open} chosen=${chosen} />
    <${Scheduler} scheduling=${scheduling} classes=${classes} isGateway=${!!state.held} />
    ${!state.held && html`<${Batch} scheduling=${scheduling} row=${row} classes=${classes} open=${open} chosen=${chosen} />`}
    <div class="stages">
      ${!state.held && html`<${Predictions} scheduling=${scheduling} classes=${classes} open=${open} />`}
      <${Ended} ended=${shown(state.ended)} classes=${classes} open=${open} />
    </div>
  </div>`;

export const Replica = ({ replica, fleet, open, opened }) => {
  const { state, name, trouble } = replica;
  const scheduling = state?.scheduling ?? state?.held;
  const gateway = fleet.gateways.find((each) => each.name === name);
  const row = gateway ?? fleet.replicas.find((each) => each.name === name);
  const old = replica.age_s != null && replica.age_s > 5;
  const said = [
    gateway ? "gateway" : null,
    row?.state,
    state?.engine ? `engine ${state.engine}` : null,
    old ? `as of ${seconds(replica.age_s)} ago` : null,
  ].filter(Boolean);
  return html`
    <section aria-labelledby="one">
      <h2 id="one" tabindex="-1">${name || "No replica"} <span class="quiet">${said.join(" · ")}</span></h2>
      ${trouble && html`<p class="trouble">${name} cannot be read: ${trouble}</p>`}
      ${
        scheduling
          ? html`<${Alive} state=${state} scheduling=${scheduling} row=${row} classes=${fleet.classes}
              open=${open} chosen=${opened && keyOf(opened)} old=${old} />`
          : !trouble && html`<p class="empty">${nothing(row, state, fleet)}</p>`
      }
    </section>`;
};
