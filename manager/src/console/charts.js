// Pictures of numbers.

import { draw, make } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 48;

// A line of the last values, the newest at the right; `name` says to who does not see it what it shows.
export function line(name, values, slots) {
  const most = Math.max(1, ...values);
  const x = at => WIDTH - (values.length - 1 - at) * WIDTH / (slots - 1);
  const y = one => HEIGHT - 2 - (HEIGHT - 4) * one / most;
  const points = values.map((one, at) => `${x(at).toFixed(1)},${y(one).toFixed(1)}`);
  const first = x(0).toFixed(1);
  return draw("svg", { class: "line", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
    "aria-label": name },
    draw("polygon", { points: [`${first},${HEIGHT}`, ...points, `${WIDTH},${HEIGHT}`].join(" ") }),
    draw("polyline", { points: points.join(" ") }));
}

// How much of a whole.
export function bar(name, part, whole, text) {
  const meter = make("progress", { max: "100", "aria-label": name });
  meter.value = whole > 0 ? 100 * part / whole : 0;
  return make("span", { class: "bar" }, meter, make("span", {}, text));
}

// A part of a circle's line between two angles in turns, with its radii.
export function arc(from, to, inner, outer) {
  const at = (turn, radius) => {
    const angle = 2 * Math.PI * (turn - 0.25);
    return `${(radius * Math.cos(angle)).toFixed(3)} ${(radius * Math.sin(angle)).toFixed(3)}`;
  };
  // A whole circle has no beginning and no end: it is drawn as nearly one.
  const end = Math.min(to, from + 0.99999);
  const large = end - from > 0.5 ? 1 : 0;
  return `M ${at(from, outer)} A ${outer} ${outer} 0 ${large} 1 ${at(end, outer)} L ${at(end, inner)} ` +
    `A ${inner} ${inner} 0 ${large} 0 ${at(from, inner)} Z`;
}
