// A request's mark glides from where it was to where it is.
const MOVE_MS = 500;
const still = matchMedia("(prefers-reduced-motion: reduce)");

const marks = () => document.querySelectorAll(".mark[data-id]");

export const placesOfMarks = () =>
  new Map([...marks()].map((mark) => [mark.dataset.id, mark.getBoundingClientRect()]));

export const moveMarks = (before) => {
  if (still.matches) return;
  for (const mark of marks()) {
    const from = before.get(mark.dataset.id);
    if (!from) {
      mark.animate([{ opacity: 0 }, { opacity: 1 }], MOVE_MS);
      continue;
    }
    const to = mark.getBoundingClientRect();
    const [x, y] = [from.x - to.x, from.y - to.y];
    if (x || y) {
      mark.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }], {
        duration: MOVE_MS,
        easing: "cubic-bezier(.2,.7,.2,1)",
      });
    }
  }
};
