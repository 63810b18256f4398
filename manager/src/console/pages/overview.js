// The cluster at a glance.

import { bar, line } from "../charts.js";
import { make, mark, quiet, swap } from "../dom.js";
import { percent, rate, size } from "../format.js";
import { live, silence } from "../live.js";

export const title = "Overview";
export const needs = "viewer";

// As many as the graphs have room for: four minutes.
const SLOTS = 120;
const SEVERITIES = { critical: ["bad", "Critical"], warning: ["warn", "Warning"], info: ["info", "Note"] };

export async function open(view) {
  const alerts = make("div", { "aria-live": "polite" });
  const numbers = make("div");
  view.replaceChildren(alerts, numbers);
  let told = null;
  const paint = () => {
    if (!live.overview) return swap(numbers, quiet("Looking…"));
    // Read out again only when they are others.
    // Of a manager that is silent nobody knows whether there are alerts; the page says above that it is silent.
    const current = silence() === null ? live.overview.alerts ?? [] : null;
    const now = JSON.stringify(current);
    if (now !== told) swap(alerts, current ? paintAlerts(current) : quiet("What follows is out of date."));
    told = now;
    swap(numbers, ...paintNumbers(live.overview));
  };
  paint();
  return paint;
}

function paintAlerts(alerts) {
  if (alerts.length === 0) return make("p", { class: "calm" }, mark("good", "No alerts"));
  const item = alert => {
    const [kind, word] = SEVERITIES[alert.severity] ?? SEVERITIES.info;
    return make("li", { class: kind }, mark(kind, word), " ", alert.message, " ",
      alert.subject && make("span", { class: "id" }, alert.subject), " ", make("code", {}, alert.code));
  };
  return make("ul", { class: "alerts", "aria-label": "Alerts" }, ...alerts.map(item));
}

function paintNumbers(seen) {
  const rates = seen.rates;
  const served = rates.received_bytes_per_second + rates.local_bytes_per_second;
  const graph = (name, key) => {
    const values = live.samples.map(sample => sample[key]);
    const most = Math.max(0, ...values);
    return make("div", { class: "wide" }, make("dt", {}, name), make("dd", {}, rate(rates[key]),
      line(`${name}: ${rate(rates[key])} now, ${rate(most)} at most in the last minutes`, values, SLOTS)));
  };
  const card = (name, ...content) => make("div", {}, make("dt", {}, name), make("dd", {}, ...content));
  const rolled = Math.floor(seen.roll_out_percent);
  return [
    make("dl", { class: "cards" },
      graph("From peers", "received_bytes_per_second"), graph("From local stores", "local_bytes_per_second"),
      graph("Sent to peers", "sent_bytes_per_second")),
    make("dl", { class: "cards" },
      card("Share from peers", served > 0 ? bar("Share of bytes from peers", rates.received_bytes_per_second, served,
        percent(100 * rates.received_bytes_per_second / served)) : "–"),
      card("Rolled out", bar("Roll-out of the configuration", rolled, 100, `${rolled} %`)),
      card("Hosts up", `${seen.hosts_up} of ${seen.hosts}`),
      card("Schedulers up", `${seen.schedulers_up} of ${seen.schedulers}`),
      card("Seeds up", seen.seeds_up), card("Tasks", seen.tasks), card("Copies", seen.contents),
      card("Stored", size(seen.stored_bytes)), card("Downloads", seen.downloads), card("Epoch", seen.epoch)),
    quiet(`Cluster ${seen.cluster_id}, dfmanager ${seen.version}`),
  ];
}
