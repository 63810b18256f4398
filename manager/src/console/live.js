// What the manager tells by itself: the overview, whenever it has looked.

// A look every two seconds, for four minutes.
const SAMPLES_MAX = 120;
const RETRY_MS = 10000;

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
  // Broken connections are made again by the browser; refused ones, such as of too many watchers, are not.
  const stream = events;
  stream.addEventListener("error", () => {
    if (stream.readyState !== EventSource.CLOSED) return;
    setTimeout(() => {
      if (events !== stream) return;
      events = null;
      watch(heard);
    }, RETRY_MS);
  });
}

export function unwatch() {
  events?.close();
  events = null;
  Object.assign(live, { overview: null, samples: [] });
}
