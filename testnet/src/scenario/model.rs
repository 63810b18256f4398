//! What a cluster must hold, as those who use it have been told.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};

/// SHA-256 of a file.
pub(super) type Digest = [u8; 32];

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Its import was acknowledged.
    Bound(Digest),
    /// Its delete was acknowledged.
    Deleted,
    /// Something was asked for and not acknowledged: it may have happened.
    Doubtful(Digest),
}

/// What an export, or the lack of a name, must be compared with.
#[derive(Debug, Default)]
pub(super) struct Model(BTreeMap<String, Known>);

impl Model {
    /// An import was acknowledged.
    pub(super) fn bound(&mut self, name: &str, digest: Digest) {
        self.0.insert(name.to_owned(), Known::Bound(digest));
    }

    /// A delete was acknowledged.
    pub(super) fn deleted(&mut self, name: &str) {
        self.0.insert(name.to_owned(), Known::Deleted);
    }

    /// An import or a delete has failed.
    pub(super) fn doubtful(&mut self, name: &str, digest: Digest) {
        self.0.insert(name.to_owned(), Known::Doubtful(digest));
    }

    /// The names that must be found.
    pub(super) fn bound_names(&self) -> Vec<String> {
        self.names(|known| matches!(known, Known::Bound(_)))
    }

    /// The names that must not be found.
    pub(super) fn deleted_names(&self) -> Vec<String> {
        self.names(|known| known == Known::Deleted)
    }

    fn names(&self, wanted: impl Fn(Known) -> bool) -> Vec<String> {
        self.0.iter().filter(|(_, known)| wanted(**known)).map(|(name, _)| name.clone()).collect()
    }

    /// Checks what an export has brought.
    ///
    /// # Errors
    /// When it is not what it has to be.
    pub(super) fn exported(&self, name: &str, digest: Digest) -> anyhow::Result<()> {
        match self.0.get(name) {
            Some(Known::Bound(right) | Known::Doubtful(right)) => {
                ensure!(*right == digest, "{name} was exported with wrong bytes");
                Ok(())
            }
            Some(Known::Deleted) => bail!("{name} was deleted, and an export brings it"),
            None => bail!("{name} was never imported, and an export brings it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told() {
        let mut model = Model::default();
        model.bound("a", [1; 32]);
        assert!(model.exported("a", [1; 32]).is_ok());
        assert!(model.exported("a", [2; 32]).is_err(), "wrong bytes");
        assert!(model.exported("b", [1; 32]).is_err(), "from nowhere");
        model.doubtful("b", [2; 32]);
        assert!(model.exported("b", [2; 32]).is_ok(), "it may be there");
        assert_eq!((model.bound_names(), model.deleted_names()), (vec!["a".to_owned()], vec![]), "nor must it be");
        assert!(model.exported("b", [1; 32]).is_err(), "but not other bytes");
        model.deleted("a");
        assert!(model.exported("a", [1; 32]).is_err(), "back from the dead");
        assert_eq!((model.bound_names(), model.deleted_names()), (vec![], vec!["a".to_owned()]));
    }
}
