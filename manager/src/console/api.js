// The API, as whoever has logged in sees it.

const RANKS = ["viewer", "operator", "admin"];

export const session = { current: null, ended: () => {} };
export const may = role => session.current !== null && RANKS.indexOf(session.current.role) >= RANKS.indexOf(role);
export const roles = RANKS;

export async function ask(method, path, body, headers = {}) {
  const options = { method, headers: { ...headers }, credentials: "same-origin" };
  if (body !== undefined) {
    options.body = typeof body === "string" ? body : JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  if (method !== "GET" && session.current?.csrf_token) options.headers["x-csrf-token"] = session.current.csrf_token;
  let answer;
  try {
    answer = await fetch(`/api/v1${path}`, options);
  } catch {
    throw { detail: "The manager does not answer.", status: 0 };
  }
  const text = await answer.text();
  const json = text && answer.headers.get("content-type")?.includes("json") ? JSON.parse(text) : null;
  if (answer.status === 401 && session.current) {
    session.ended();
    throw { detail: "The session has ended: log in again.", status: 401 };
  }
  if (!answer.ok) throw { detail: `The manager answers ${answer.status}.`, ...json, status: answer.status };
  return { json, etag: answer.headers.get("etag") };
}

export const get = async path => (await ask("GET", path)).json;

// What this manager's API has, by its own document.
let paths = null;
export async function has(path) {
  paths ??= new Set(Object.keys((await get("/openapi.json")).paths));
  return paths.has(`/api/v1${path}`);
}
