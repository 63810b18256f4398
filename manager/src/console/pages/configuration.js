// The settings: what is in force, changing it, how far it has come, and what was in force before.

import { ask, get, has, may } from "../api.js";
import { bar } from "../charts.js";
import { button, id, make, number, quiet, swap, table } from "../dom.js";
import { differences, time, value } from "../format.js";
import { live } from "../live.js";
import { consent, doing, say } from "../tell.js";
import { settingsForm } from "./settings_form.js";

export const title = "Configuration";
export const needs = "viewer";

const HISTORY = 20;

export async function open(view, _argument, again) {
  const [{ json: settings, etag }, fields, past] = await Promise.all([
    ask("GET", "/config"), fieldsOfSettings(), get(`/config/history?limit=${HISTORY}`)]);
  const epoch = Number(etag.replaceAll('"', ""));
  const form = settingsForm(settings, fields, !may("operator"));
  const review = button("Review the change", doing(async () => {
    const wanted = form.read();
    const changed = differences(settings, wanted);
    if (changed.length === 0) return say("Nothing is changed.");
    if (!await consent({ title: "Put this in force?", confirm: "Put in force", content: [paintDifferences(changed)] })) return;
    const made = await ask("PUT", "/config", wanted, { "if-match": etag });
    await again();
    say(`Epoch ${made.etag.replaceAll('"', "")} is in force.`);
  }), { class: "main" });
  const rollOut = make("div");
  const newer = make("div");
  view.replaceChildren(rollOut, newer, form.element, may("operator") ? make("div", { class: "row" }, review) : "",
    make("h3", {}, "History"), paintHistory(past, settings, epoch, again));
  const paint = () => {
    if (!live.overview) return;
    const there = Math.floor(live.overview.roll_out_percent);
    const text = `${there} %`;
    if (rollOut.dataset.text !== `${text} ${live.overview.epoch}`) {
      rollOut.dataset.text = `${text} ${live.overview.epoch}`;
      swap(rollOut, make("p", { class: "row", "aria-live": "polite" }, `Epoch ${live.overview.epoch} runs on `,
        bar("Roll-out of the configuration", there, 100, text), " of the hosts and schedulers that are up."));
    }
    if (live.overview.epoch > epoch && !newer.hasChildNodes()) {
      newer.append(make("p", { class: "notice", role: "status" }, "The settings were changed meanwhile. ",
        button("Show what is in force", doing(again))));
    }
  };
  paint();
  return paint;
}

// What each setting means and may be; older managers do not tell.
async function fieldsOfSettings() {
  return await has("/config/fields") ? (await get("/config/fields")).items : [];
}

function paintDifferences(changed) {
  return table("Changes", ["Setting", "In force", "Then"],
    changed.map(one => [one.name, id(value(one.before)), id(value(one.after))]));
}

function paintHistory(past, settings, current, again) {
  const rows = past.items.map((entry, at) => {
    const older = past.items[at + 1];
    const changed = entry.settings && older?.settings ? differences(older.settings, entry.settings) : [];
    const texts = changed.map(one => make("li", {}, `${one.name}: ${value(one.before)} → ${value(one.after)}`));
    if (entry.reason) texts.unshift(make("li", {}, entry.reason));
    const what = entry.damaged ?? (texts.length > 0 ? make("ul", { class: "plain" }, ...texts) : entry.changed.join(", "));
    return [entry.epoch, time(entry.issued), id(what || "–"), bringBack(entry, settings, current, again)];
  });
  return table("History", ["Epoch", "When", "What changed", ""], rows);
}

function bringBack(entry, settings, current, again) {
  if (!may("operator") || entry.epoch === current || !entry.settings) return "";
  return button("Bring back", doing(async () => {
    const changed = differences(settings, entry.settings);
    const content = [changed.length === 0 ? quiet("They are the same as those in force.") : paintDifferences(changed)];
    const agreed = await consent({ title: `Bring the settings of epoch ${entry.epoch} back?`, confirm: "Bring back", content });
    if (!agreed) return;
    await ask("POST", "/config/rollback", { epoch: entry.epoch });
    await again();
    say(`The settings of epoch ${entry.epoch} are in force again.`);
  }), { "aria-label": `Bring back epoch ${entry.epoch}` });
}
