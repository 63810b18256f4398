// What the manager tells by itself: the overview, whenever it has looked.

// A look every two seconds, for four minutes.
const SAMPLES_MAX = 120;
const RETRY_MS = 10000;
// The manager looks every two seconds, and for twelve when a scheduler hangs. A broken connection is made again at once.
const SILENT_MS = 15000;
const BROKEN_MS = 6000;

export const live = { overview: null, samples: [] };
let events = null;
// When the manager was heard last, and since when the connection is broken.
let heardAt = 0;
let brokenAt = null;

// Since when nothing was heard, if that is too long; else null.
export function silence() {
  if (!events && brokenAt === null) return null;
  const now = Date.now();
  const silent = now - heardAt > SILENT_MS || (brokenAt !== null && now - brokenAt > BROKEN_MS);
  return silent ? new Date(heardAt) : null;
}

export function watch(heard) {
  if (events) return;
  events = new EventSource("/api/v1/events");
  heardAt ||= Date.now();
  events.addEventListener("overview", event => {
    [heardAt, brokenAt] = [Date.now(), null];
    live.overview = JSON.parse(event.data);
    live.samples.push(live.overview.rates);
    if (live.samples.length > SAMPLES_MAX) live.samples.shift();
    heard(live.overview);
  });
  // Broken connections are made again by the browser; refused ones, such as of too many watchers, are not.
  const stream = events;
  stream.addEventListener("error", () => {
    if (events === stream) brokenAt ??= Date.now();
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
  [heardAt, brokenAt] = [0, null];
  Object.assign(live, { overview: null, samples: [] });
}
