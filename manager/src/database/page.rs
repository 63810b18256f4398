//! Lists in parts.

use super::DatabaseError;

/// The most rows of one page.
pub const LIMIT_MAX: u32 = 200;

/// Which part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    limit: u32,
    after: Option<String>,
}

impl Page {
    /// At most `limit` rows (1 to [`LIMIT_MAX`]) after the row that `after` names, which is the `next` of a [`Paged`].
    pub fn new(limit: u32, after: Option<String>) -> Self {
        Self { limit: limit.clamp(1, LIMIT_MAX), after }
    }

    /// One row more than is wanted: it tells whether there is another page.
    pub(super) fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// The number that rows newest first are to be below; a cursor that is none begins anew.
    pub(super) fn below(&self) -> i64 {
        self.after.as_deref().and_then(|after| after.parse().ok()).unwrap_or(i64::MAX)
    }

    /// What [`Page::fetch`] rows come to; `cursor` names a row.
    pub(super) fn cut<R, T>(
        &self,
        rows: Vec<R>,
        read: impl Fn(&R) -> Result<T, DatabaseError>,
        cursor: impl Fn(&R) -> Result<String, DatabaseError>,
    ) -> Result<Paged<T>, DatabaseError> {
        let wanted = self.limit as usize;
        let last = rows.get(wanted).and_then(|_| rows.get(wanted - 1));
        let next = last.map(cursor).transpose()?;
        let items = rows.iter().take(wanted).map(read).collect::<Result<_, _>>()?;
        Ok(Paged { items, next })
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paged<T> {
    /// In the order of the list.
    pub items: Vec<T>,
    /// Where the next part begins; `None` at the end.
    pub next: Option<String>,
}
