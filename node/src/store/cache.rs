//! Manifests that were asked for lately.

use std::collections::VecDeque;

use damselfly_messages::{id::ContentId, manifest::Manifest};

const MANIFESTS_MAX: usize = 64;
const DIGESTS_MAX: usize = (16 << 20) / 32;

/// Up to 64 manifests and, beside the newest, 16 MiB of digests, the newest in front.
#[derive(Default)]
pub(super) struct ManifestCache {
    manifests: VecDeque<Manifest>,
    digests: usize,
}

impl ManifestCache {
    pub fn get(&mut self, id: ContentId) -> Option<Manifest> {
        let at = self.manifests.iter().position(|manifest| manifest.content() == id)?;
        let manifest = self.manifests.remove(at)?;
        self.manifests.push_front(manifest.clone());
        Some(manifest)
    }

    pub fn put(&mut self, manifest: Manifest) {
        self.forget(manifest.content());
        self.digests += manifest.digests().len();
        self.manifests.push_front(manifest);
        while self.manifests.len() > MANIFESTS_MAX || (self.manifests.len() > 1 && self.digests > DIGESTS_MAX) {
            let oldest = self.manifests.pop_back().map_or(0, |manifest| manifest.digests().len());
            self.digests -= oldest;
        }
    }

    pub fn forget(&mut self, id: ContentId) {
        if let Some(at) = self.manifests.iter().position(|manifest| manifest.content() == id) {
            self.digests -= self.manifests.remove(at).map_or(0, |manifest| manifest.digests().len());
        }
    }
}
