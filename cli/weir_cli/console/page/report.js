// Simulated runs, drawn as the console draws a live service; the page holds their figures.
import { render } from "./vendor/preact.mjs";
import { Chart, Timelines } from "./charts.js";
import { count, html, seconds } from "./words.js";

const { classes, runs } = JSON.parse(document.getElementById("figures").textContent);
const highest = (values) => {
  const known = values.filter((value) => value != null);
  return known.length ? Math.max(...known) : null;
};
// All runs over the same time, so that they can be compared.
const until_s = highest(runs.flatMap((run) => run.moments.map((moment) => moment.at_s))) ?? 1;

const Run = ({ run }) => {
  const span = {
    title: run.title,
    from_s: 0,
    until_s,
    ends: ["0 s", seconds(until_s)],
    word: "at most",
    told: highest,
  };
  return html`
    <${Timelines} moments=${run.moments} classes=${classes} span=${span}>
      <${Chart} title="Waiting in the engines" note="requests" span=${span} moments=${run.moments}
        format=${count}
        lines=${[{ name: "", style: "n", value: (moment) => moment.engine_waiting }]} />
    <//>`;
};

render(runs.map((run) => html`<${Run} run=${run} />`), document.getElementById("runs"));
