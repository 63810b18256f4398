//! Piece buffers: reused, and bounded for the whole daemon.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Granularity in which memory is counted.
const UNIT_BYTES: usize = 64 << 10;
/// Free buffers are kept up to this size; larger ones are rare and go back.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// How many free buffers are kept.
const KEPT_MAX: usize = 32;

/// A bounded amount of memory for pieces on their way; cheap to clone.
#[derive(Clone)]
pub struct Buffers {
    budget: Arc<Semaphore>,
    /// Half of it, for buffers that may be kept for any time.
    lasting: Arc<Semaphore>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    units: u32,
}

/// A buffer that goes back when it is dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    _permit: OwnedSemaphorePermit,
}

impl Buffers {
    /// Buffers of `budget_bytes` together.
    pub fn new(budget_bytes: usize) -> Self {
        let units = (budget_bytes / UNIT_BYTES).max(1);
        let lasting = Arc::new(Semaphore::new(units / 2));
        Self { budget: Arc::new(Semaphore::new(units)), lasting, free: Arc::default(), units: units as u32 }
    }

    /// Waits until there is room for `bytes`, then gives a buffer of that length. What it holds is left over.
    pub async fn take(&self, bytes: usize) -> Buffer {
        let units = self.units_of(bytes);
        let permit = match Arc::clone(&self.budget).acquire_many_owned(units).await {
            Ok(permit) => permit,
            // Nobody closes the semaphore.
            Err(_) => std::future::pending().await,
        };
        self.buffer(bytes, permit)
    }

    /// Leave to keep a buffer of `bytes` however long it takes; `None` when those that are kept so are half of all.
    pub fn share(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lasting).try_acquire_many_owned(self.units_of(bytes)).ok()
    }

    fn units_of(&self, bytes: usize) -> u32 {
        (bytes.div_ceil(UNIT_BYTES) as u32).clamp(1, self.units)
    }

    fn buffer(&self, bytes: usize, permit: OwnedSemaphorePermit) -> Buffer {
        let mut vector = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        vector.resize(bytes, 0);
        Buffer { bytes: vector, free: Arc::clone(&self.free), _permit: permit }
    }
}

impl Buffer {
    /// The vector itself, for those who set its length.
    pub const fn as_vec(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() <= KEPT_BYTES_MAX {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < KEPT_MAX {
                free.push(bytes);
            }
        }
    }
}
