// Values as people read them.

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

export const rate = bytes => `${size(bytes)}/s`;
export const time = text => text ? new Date(text).toLocaleString() : "–";
export const percent = part => `${part >= 99.95 || part < 0.05 ? Math.round(part) : part.toFixed(1)} %`;
export const value = json => json === undefined ? "–" : typeof json === "string" ? json : JSON.stringify(json);

export function tags(map) {
  return Object.entries(map ?? {}).map(([key, text]) => `${key}=${text}`).join(", ");
}

// The names of what differs, with both values.
export function differences(before, after) {
  const names = new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})]);
  return [...names].map(name => ({ name, before: before?.[name], after: after?.[name] }))
    .filter(one => JSON.stringify(one.before) !== JSON.stringify(one.after));
}
