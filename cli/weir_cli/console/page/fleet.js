// The sums of a service, and its replicas as a grid.
import { ClassName, count, html, seconds, share, Skip, sum } from "./words.js";

const SIGNS = { ready: "●", draining: "◐", "no answer": "✕", gone: "✕", down: "✕" };
const sign = (state) => SIGNS[state] ?? "○";
const kind = (state) =>
  state === "ready" ? "fine" : ["no answer", "gone", "down"].includes(state) ? "bad" : "pending";

const Figure = ({ name, value, note }) => html`
  <div class="figure"><dt>${name}</dt><dd>${value}</dd><dd class="quiet">${note}</dd></div>`;

const total = (rows, field) => {
  const known = rows.map((row) => row[field]).filter((value) => value != null);
  return known.length ? known.reduce((all, one) => all + one, 0) : null;
};

export const Sums = ({ fleet }) => {
  const rows = [...fleet.replicas, ...fleet.gateways];
  const waiting = rows.reduce((all, row) => all + sum(row.waiting), 0);
  const rejected = fleet.classes.reduce((all, each) => all + sum(each.rejected), 0);
  const ready = fleet.replicas.filter((row) => row.state === "ready").length;
  const slots = sum(fleet.slots);
  return html`
    <dl class="figures" aria-label="Sums of the service">
      <${Figure} name="Waiting" value=${count(waiting)}
        note=${waiting ? `oldest ${seconds(Math.max(...rows.map((row) => row.oldest_s ?? 0)))}` : "nothing waits"} />
      <${Figure} name="In the engines" value=${count(total(rows, "at_engine"))}
        note=${slots ? `of ${count(slots)} slots` : "slots unknown"} />
      <${Figure} name="Output" value=${count(total(rows, "output_tokens_s"))} note="tokens a second" />
      <${Figure} name="Prompts" value=${count(total(rows, "prompt_tokens_s"))} note="tokens a second" />
      <${Figure} name="Rejected" value=${count(rejected)} note="in the last minute" />
      <${Figure} name="Replicas" value=${`${ready}/${fleet.replicas.filter((row) => row.state !== "gone").length}`} note="ready" />
    </dl>`;
};

export const Classes = ({ fleet }) => html`
  <section aria-labelledby="classes">
    <h2 id="classes">Classes</h2>
    <div class="scrolled" role="group" aria-labelledby="classes" tabindex="0"><table>
      <thead><tr><th scope="col">class</th><th scope="col" class="number">waiting</th>
        <th scope="col">by tenant</th><th scope="col" class="number">oldest</th>
        <th scope="col" class="number">TTFT p99</th><th scope="col" class="number">target</th>
        <th scope="col" class="number">met</th><th scope="col">rejected, last minute</th></tr></thead>
      <tbody>
        ${fleet.classes.map(
          (each) => html`
            <tr key=${each.name}>
              <th scope="row"><${ClassName} classes=${fleet.classes} name=${each.name} /></th>
              <td class="number">${count(sum(each.waiting))}</td>
              <td class="names">${named(each.waiting)}</td>
              <td class="number">${seconds(each.oldest_s)}</td>
              <td class=${`number${isLate(each) ? " late" : ""}`}>${seconds(each.ttft_p99_s)}${isLate(each) ? " late" : ""}</td>
              <td class="number">${seconds(each.ttft_target_s)}</td>
              <td class="number">${share(each.ttft_met)}</td>
              <td class="names">${named(each.rejected)}</td>
            </tr>`,
        )}
      </tbody>
    </table></div>
  </section>`;

const isLate = (each) =>
  each.ttft_p99_s != null && each.ttft_target_s != null && each.ttft_p99_s > each.ttft_target_s;

const named = (counts) =>
  Object.entries(counts ?? {})
    .sort((one, other) => other[1] - one[1])
    .slice(0, 6)
    .map(([name, number]) => `${name.replaceAll("_", " ")} ${count(number)}`)
    .join(", ");

const stateOf = (row, waiting) => {
  if (row.state !== "ready" || !row.answers) return row.state;
  if (waiting) return `${count(waiting)} wait`;
  return row.at_engine == null ? row.state : `${count(row.at_engine)} run`;
};

const Cell = ({ row, slots, isChosen, choose, short }) => {
  const waiting = sum(row.waiting);
  const load = slots && row.at_engine != null ? Math.min(1, row.at_engine / slots) : null;
  const inEngine = row.at_engine == null ? "" : `, ${count(row.at_engine)} in the engine${slots ? ` of ${slots}` : ""}`;
  const told = row.answers ? `${row.state}${inEngine}, ${waiting} wait` : row.state;
  return html`
    <button class=${`cell ${kind(row.state)}`} aria-pressed=${isChosen} title=${`${row.name}: ${told}`}
      aria-label=${`${row.name}: ${told}`} onClick=${() => choose(row.name)}>
      <span class="cell-name"><span class="sign" aria-hidden="true">${sign(row.state)}</span>${short}</span>
      ${load !== null && html`
        <svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
          <rect class="meter-room" width="100" height="6" rx="2" />
          <rect class="meter-fill" width=${100 * load} height="6" rx="2" />
        </svg>`}
      <span class="cell-state quiet">${stateOf(row, waiting)}</span>
    </button>`;
};

// Names of pods differ at their end.
const CELL_CHARACTERS = 9;
const ending = (name) => (name.length > CELL_CHARACTERS ? `…${name.slice(1 - CELL_CHARACTERS)}` : name);

const Cells = ({ rows, fleet, chosen, choose }) => {
  const begin = `${fleet.service.split("/").at(-1)}-`;
  return html`
    <div class="grid-of-replicas">
      ${rows.map(
        (row) => html`
          <${Cell} key=${row.name} row=${row} slots=${fleet.slots[row.name]} choose=${choose}
            isChosen=${row.name === chosen}
            short=${ending(row.name.startsWith(begin) ? row.name.slice(begin.length) : row.name)} />`,
      )}
    </div>`;
};

export const Grid = ({ fleet, chosen, choose }) => html`
  <section aria-labelledby="replicas">
    <h2 id="replicas">Replicas <span class="quiet">${fleet.replicas.length ? "choose one to see its requests" : "none runs now"}</span></h2>
    <${Skip} to="one" what="the replicas" of=${fleet.replicas} />
    <${Cells} rows=${fleet.replicas} fleet=${fleet} chosen=${chosen} choose=${choose} />
  </section>
  ${
    fleet.gateways.length > 0 &&
    html`
      <section aria-labelledby="gateways">
        <h2 id="gateways">Gateways <span class="quiet">requests wait there while no replica takes them</span></h2>
        <${Cells} rows=${fleet.gateways} fleet=${fleet} chosen=${chosen} choose=${choose} />
      </section>`
  }`;
