//! What a cluster must hold, as those who use it have been told.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};

/// SHA-256 of a file.
pub(super) type Digest = [u8; 32];

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// Its import was acknowledged.
    Bound(Digest),
    /// Its delete was acknowledged.
    Deleted,
    /// Something was asked for and not acknowledged: it may have happened.
    Doubtful(Digest),
    /// Different bytes were imported under it at once: one of them wins.
    Contested(Vec<Digest>),
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

    /// A delete is tried.
    pub(super) fn may_be_deleted(&mut self, name: &str) {
        if let Some(Known::Bound(digest)) = self.0.get(name) {
            let digest = *digest;
            self.doubtful(name, digest);
        }
    }

    /// An import is tried.
    pub(super) fn doubtful(&mut self, name: &str, digest: Digest) {
        self.0.insert(name.to_owned(), Known::Doubtful(digest));
    }

    /// One of several imports of different bytes is tried.
    pub(super) fn contested(&mut self, name: &str, digest: Digest) {
        match self.0.get_mut(name) {
            Some(Known::Contested(digests)) => digests.push(digest),
            _ => drop(self.0.insert(name.to_owned(), Known::Contested(vec![digest]))),
        }
    }

    /// Every name.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Those of these names that must be found, and those that must not.
    pub(super) fn bound_and_deleted(&self, names: &[String]) -> (Vec<String>, Vec<String>) {
        let these = |wanted: fn(&Known) -> bool| {
            names.iter().filter(|name| self.0.get(*name).is_some_and(wanted)).cloned().collect()
        };
        (these(|known| matches!(known, Known::Bound(_))), these(|known| *known == Known::Deleted))
    }

    /// Checks what an export has brought. The first one of a contested name says who has won.
    ///
    /// # Errors
    /// When it is not what it has to be.
    pub(super) fn exported(&mut self, name: &str, digest: Digest) -> anyhow::Result<()> {
        match self.0.get(name) {
            Some(Known::Contested(digests)) => {
                ensure!(digests.contains(&digest), "{name} was exported with bytes that nobody imported");
                self.bound(name, digest);
                Ok(())
            }
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
        let names = model.names();
        assert_eq!(model.bound_and_deleted(&names), (vec!["a".to_owned()], vec![]), "nor must it be");
        assert!(model.exported("b", [1; 32]).is_err(), "but not other bytes");
        model.deleted("a");
        assert!(model.exported("a", [1; 32]).is_err(), "back from the dead");
        assert_eq!(model.bound_and_deleted(&names), (vec![], vec!["a".to_owned()]));
        assert_eq!(model.bound_and_deleted(&[]), (vec![], vec![]), "nobody asked");
    }

    #[test]
    fn one_of_those_who_contest_a_name_wins_everywhere() {
        let mut model = Model::default();
        model.contested("a", [1; 32]);
        model.contested("a", [2; 32]);
        assert!(model.exported("a", [3; 32]).is_err(), "neither");
        assert!(model.exported("a", [2; 32]).is_ok());
        assert!(model.exported("a", [1; 32]).is_err(), "the other one has won");
    }
}
