//! Cursors of lists: whatever a client sends, a page or a refusal, and no more than a page.

use std::cell::RefCell;

use damselfly_manager::database::{Database, LIMIT_MAX, Location, Page, audit::Filter};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::head;

/// A database and the runtime that drives it.
struct Manager {
    runtime: Runtime,
    database: Database,
    _folder: TempDir,
}

fn manager() -> Manager {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let place = Location::Sqlite(folder.path().join("manager.db"));
    let database = runtime.block_on(Database::open(place)).expect("a new database");
    Manager { runtime, database, _folder: folder }
}

/// The first byte is the limit, the others are the cursor and a filter.
pub(crate) fn run(bytes: &[u8]) {
    thread_local! {
        static MANAGER: RefCell<Option<Manager>> = const { RefCell::new(None) };
    }
    MANAGER.with_borrow_mut(|kept| {
        let manager = kept.get_or_insert_with(manager);
        let ([limit], cursor) = head(bytes);
        let cursor = String::from_utf8_lossy(cursor).into_owned();
        let page = Page::new(u32::from(limit), Some(cursor.clone()));
        let filter = Filter { actor: Some(cursor.clone()), action: Some(cursor.clone()) };
        manager.runtime.block_on(read(&manager.database, &page, &filter, &cursor));
    });
}

async fn read(database: &Database, page: &Page, filter: &Filter, text: &str) {
    let audit = database.audit(page, filter).await.expect("a page of the audit");
    assert!(audit.items.len() <= LIMIT_MAX as usize);
    let members = database.members(page, Some(text)).await.expect("a page of the members");
    assert!(members.items.len() <= LIMIT_MAX as usize);
    database.join_tokens(page).await.expect("a page of the join tokens");
    database.users(page).await.expect("a page of the users");
    database.access_tokens(page, Some(text)).await.expect("a page of the tokens");
    let number = text.parse().unwrap_or(u64::MAX);
    database.configurations(number, LIMIT_MAX as usize).await.expect("some configurations");
    database.member(text).await.expect("nobody, or a member");
}
