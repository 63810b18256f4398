// What the manager tells by itself: the overview, whenever it has looked.

// A look every two seconds, for four minutes.
const SAMPLES_MAX = 120;

export const live = { overview: null, samples: [] };
let events = null;

export function watch(heard) {
  if (events) return;
  events = new EventSource("/api/v1/events");
  events.addEventListener("overview", event => {
    live.overview = JSON.parse(event.data);
    live.samples.push(live.overview.rates);
    if (live.samples.length > SAMPLES_MAX) live.samples.shift();
    heard(live.overview);
  });
}

export function unwatch() {
  events?.close();
  events = null;
  Object.assign(live, { overview: null, samples: [] });
}
