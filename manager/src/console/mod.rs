//! The console: one page, its style and its scripts, in the binary.
//!
//! It uses the API as any other client does, so there is one way to do a thing and one table of permissions, and it takes
//! nothing from elsewhere. What comes from the API is put into the page as text, never as markup.

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};

const PAGE: &str = include_str!("index.html");

const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// What the page needs: where it is served, its type, and itself. The scripts import each other by these paths.
const FILES: &[(&str, &str, &str)] = &[
    ("/console/console.css", CSS, include_str!("console.css")),
    ("/console/main.js", JAVASCRIPT, include_str!("main.js")),
    ("/console/api.js", JAVASCRIPT, include_str!("api.js")),
    ("/console/charts.js", JAVASCRIPT, include_str!("charts.js")),
    ("/console/dom.js", JAVASCRIPT, include_str!("dom.js")),
    ("/console/format.js", JAVASCRIPT, include_str!("format.js")),
    ("/console/live.js", JAVASCRIPT, include_str!("live.js")),
    ("/console/tell.js", JAVASCRIPT, include_str!("tell.js")),
    ("/console/pages/access.js", JAVASCRIPT, include_str!("pages/access.js")),
    ("/console/pages/audit.js", JAVASCRIPT, include_str!("pages/audit.js")),
    ("/console/pages/configuration.js", JAVASCRIPT, include_str!("pages/configuration.js")),
    ("/console/pages/hosts.js", JAVASCRIPT, include_str!("pages/hosts.js")),
    ("/console/pages/overview.js", JAVASCRIPT, include_str!("pages/overview.js")),
    ("/console/pages/ring.js", JAVASCRIPT, include_str!("pages/ring.js")),
    ("/console/pages/settings_form.js", JAVASCRIPT, include_str!("pages/settings_form.js")),
    ("/console/pages/task.js", JAVASCRIPT, include_str!("pages/task.js")),
    ("/console/pages/tasks.js", JAVASCRIPT, include_str!("pages/tasks.js")),
];

/// The page at `/` and at `/setup`, and what it needs.
pub fn routes() -> Router {
    let page = get(async || answer("text/html; charset=utf-8", PAGE));
    let router = Router::new().route("/", page.clone()).route("/setup", page);
    FILES.iter().fold(router, |router, (path, kind, body)| router.route(path, get(async || answer(kind, body))))
}

fn answer(kind: &'static str, body: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_is_served_that_another_imports() {
        let served: Vec<_> = FILES.iter().map(|(path, ..)| *path).collect();
        let mut imports = 0;
        for (path, _, text) in FILES.iter().filter(|(_, kind, _)| *kind == JAVASCRIPT) {
            let folder = path.rsplit_once('/').expect("a folder").0;
            for wanted in text.lines().filter_map(|line| line.split_once(" from \"")?.1.split('"').next()) {
                let (folder, wanted) = match wanted.strip_prefix("../") {
                    Some(above) => (folder.rsplit_once('/').expect("a folder").0, above),
                    None => (folder, wanted.strip_prefix("./").expect("a path")),
                };
                let wanted = format!("{folder}/{wanted}");
                assert!(served.contains(&wanted.as_str()), "{path} imports {wanted}");
                imports += 1;
            }
        }
        assert!(imports > 20, "{imports}");
        for path in PAGE.split(['"', '\'']).filter(|text| text.starts_with("/console/")) {
            assert!(served.contains(&path), "{path}");
        }
    }

    #[test]
    fn nothing_becomes_markup_or_comes_from_elsewhere() {
        for (path, _, text) in FILES.iter().chain([&("/", "", PAGE)]) {
            for wrong in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", "https://"]
            {
                assert!(!text.contains(wrong), "{path} has {wrong}");
            }
        }
    }
}
