//! What is made of a configuration: the settings and the revocations of the next one.

use damselfly_messages::{
    config::{Configuration, Revocation, SchedulerEntry, SchedulerState, Settings},
    record::UnixMillis,
    wire::Invalid,
};
use libp2p::PeerId;

use super::SettingsPatch;

/// Makes the next one of the one in force; `None` when nothing is to change, [`Invalid`] when it cannot be made.
pub(super) trait Edit: Fn(&Configuration) -> Result<Option<Made>, Invalid> + Send + Sync + 'static {}

impl<F: Fn(&Configuration) -> Result<Option<Made>, Invalid> + Send + Sync + 'static> Edit for F {}

/// Settings, and who is out.
pub(super) type Made = (Settings, Vec<Revocation>);

/// Other settings, and whoever is out stays out.
pub(super) fn keep_out(settings: Settings) -> impl Edit {
    move |current: &Configuration| Ok(Some((settings.clone(), current.revoked.clone())))
}

/// Other values of some settings; the rest, and whoever is out, stays as it is.
pub(super) fn patched(patch: SettingsPatch) -> impl Edit {
    move |current: &Configuration| {
        let settings = patch.apply(&current.settings)?;
        Ok((settings != current.settings).then(|| (settings, current.revoked.clone())))
    }
}

/// Earlier settings with the present schedulers: which ones there are, and in which state, is no choice of the past.
pub(super) fn back_to(settings: Settings) -> impl Edit {
    move |current: &Configuration| {
        let schedulers = current.settings.schedulers.clone();
        Ok(Some((Settings { schedulers, ..settings.clone() }, current.revoked.clone())))
    }
}

/// One scheduler more, unless it is there.
pub(super) fn with_scheduler(entry: SchedulerEntry) -> impl Edit {
    move |current: &Configuration| {
        let mut settings = current.settings.clone();
        if settings.scheduler(&entry.peer_id).is_some() {
            return Ok(None);
        }
        settings.schedulers.push(entry.clone());
        Ok(Some((settings, current.revoked.clone())))
    }
}

/// Another state of a scheduler whose present one `is_wanted` accepts.
pub(super) fn with_state(
    peer: PeerId,
    to: SchedulerState,
    is_wanted: impl Fn(SchedulerState) -> bool + Send + Sync + 'static,
) -> impl Edit {
    move |current: &Configuration| {
        let mut settings = current.settings.clone();
        let is_meant = |entry: &&mut SchedulerEntry| entry.peer_id == peer && is_wanted(entry.state);
        let Some(entry) = settings.schedulers.iter_mut().find(is_meant) else { return Ok(None) };
        entry.state = to;
        Ok(Some((settings, current.revoked.clone())))
    }
}

/// A host is out, unless it is already.
pub(super) fn without(peer: PeerId, now: UnixMillis) -> impl Edit {
    move |current: &Configuration| {
        if current.revoked.iter().any(|revoked| revoked.peer == peer) {
            return Ok(None);
        }
        let mut settings = current.settings.clone();
        settings.schedulers.retain(|scheduler| scheduler.peer_id != peer);
        // When no credential of theirs can hold any more, they need not be named.
        let mut revoked = current.revoked.clone();
        revoked.retain(|revoked| revoked.is_needed(&current.settings, now));
        revoked.push(Revocation { peer, at: now });
        Ok(Some((settings, revoked)))
    }
}

/// The same settings, for a change of the roots alone.
pub(super) fn as_it_is(current: &Configuration) -> Result<Option<Made>, Invalid> {
    Ok(Some((current.settings.clone(), current.revoked.clone())))
}
