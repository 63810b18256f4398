//! The pages of a redb file, read without redb: what a damaged index still holds.
//!
//! redb refuses a file as a whole when it was not closed and one bit of it is wrong. Here each page is verified by
//! itself, against the checksum that its parent keeps, and a page that does not verify costs no more than what it held.
//! The format is that of redb's file format 3 (redb 3 and 4), see `docs/design.md` there.

use std::{collections::HashSet, io, ops::Range};

use xxhash_rust::xxh3::xxh3_128;

use super::disk::{At, Disk};

/// A longer index is not looked into: it has to fit into memory.
const INDEX_BYTES_MAX: u64 = 1 << 30;
const PAGE_BYTES: usize = 4096;
const MAGIC: &[u8; 9] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// Set in the byte after the magic number until the file is closed.
const UNCLEAN: u8 = 2;
/// Set there when the second slot has the last commit.
const SECOND_SLOT: u8 = 1;
const SLOTS: [usize; 2] = [64, 192];
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
const LEAF_HEADER_BYTES: usize = 4;
const BRANCH_HEADER_BYTES: usize = 8;
/// Bytes per child of a branch: its checksum and its page number.
const CHILD_BYTES: usize = 24;
/// No tree of a file that fits into memory is deeper.
const DEPTH_MAX: usize = 32;
/// All keys of the tables that hold rows.
pub(super) const KEY_BYTES: usize = 32;

/// A redb file in memory.
#[derive(Default)]
pub(super) struct Image {
    bytes: Vec<u8>,
}

/// A page, as its parent names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pointer {
    number: u64,
    checksum: u128,
}

/// The last commit of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Commit {
    /// The header says so without a contradiction. Says nothing of the pages.
    pub is_sound: bool,
    /// A part of the header is not as it was written.
    pub is_damaged: bool,
    /// The tree of tables.
    pub tables: Option<Pointer>,
}

/// What a commit slot of the header says.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The slot matches its checksum.
    is_sound: bool,
    root: Option<Pointer>,
    transaction: u64,
}

/// The keys after `after`, up to and with `until`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyRange {
    pub after: Option<Vec<u8>>,
    pub until: Option<Vec<u8>>,
}

impl KeyRange {
    pub fn contains(&self, key: &[u8]) -> bool {
        self.after.as_deref().is_none_or(|after| key > after) && self.until.as_deref().is_none_or(|until| key <= until)
    }
}

/// A leaf page that was reached from a root.
#[derive(Debug)]
pub(super) struct Leaf {
    /// Its bytes in the file.
    pub at: Range<usize>,
    /// It matches the checksum that its parent keeps.
    pub is_sound: bool,
    /// The keys that it may hold.
    pub range: KeyRange,
}

/// What was reached of a table.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub leaves: Vec<Leaf>,
    /// Keys of which nothing is known, because a page is damaged or cannot be found.
    pub gaps: Vec<KeyRange>,
}

impl Image {
    /// Reads the header.
    pub fn read_head(disk: &Disk, at: &At) -> io::Result<Self> {
        let mut bytes = vec![0; PAGE_BYTES];
        disk.open(at, false)?.read_at(&mut bytes, 0)?;
        Ok(Self { bytes })
    }

    /// Reads the whole file; a sector that cannot be read counts as empty.
    pub fn read(disk: &Disk, at: &At) -> io::Result<Self> {
        let file = disk.open(at, false)?;
        let length = file.len()?;
        if length > INDEX_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = vec![0; length as usize];
        for (number, page) in bytes.chunks_mut(PAGE_BYTES * 16).enumerate() {
            let offset = (number * PAGE_BYTES * 16) as u64;
            if file.read_at(page, offset).is_err() {
                for (sector, part) in page.chunks_mut(PAGE_BYTES).enumerate() {
                    if file.read_at(part, offset + (sector * PAGE_BYTES) as u64).is_err() {
                        part.fill(0);
                    }
                }
            }
        }
        Ok(Self { bytes })
    }

    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Whether the file is an index of redb that was not closed.
    pub fn is_unclean(&self) -> bool {
        self.bytes.starts_with(MAGIC) && self.bytes.get(MAGIC.len()).is_some_and(|flags| flags & UNCLEAN != 0)
    }

    /// The last commit, as far as the header says which that is. Its pages may be damaged, or missing.
    pub fn last_commit(&self) -> Option<Commit> {
        let flags = *self.bytes.get(MAGIC.len())?;
        let mut slots: Vec<_> = SLOTS.iter().filter_map(|at| self.slot(*at)).collect();
        if flags & SECOND_SLOT != 0 {
            slots.reverse();
        }
        let said = slots.first().map(|slot| slot.transaction)?;
        let is_there = |slot: &Slot| slot.root.is_none_or(|root| self.verifies(root));
        // One wrong bit of the header must not bring back the commit before.
        let credible = slots.iter().filter(|slot| slot.is_sound || is_there(slot));
        let last = credible.max_by_key(|slot| slot.transaction).or(slots.first())?;
        let is_sound = last.is_sound && last.transaction == said && self.bytes.starts_with(MAGIC);
        // A power loss leaves each of them whole: they are shorter than a sector.
        let is_damaged = slots.iter().any(|slot| !slot.is_sound);
        Some(Commit { is_sound, is_damaged, tables: last.root })
    }

    fn verifies(&self, page: Pointer) -> bool {
        let Some(at) = self.page(page.number) else { return false };
        let bytes = &self.bytes[at];
        let end = if bytes[0] == BRANCH { branch(bytes).map(|branch| branch.end) } else { leaf_end(bytes) };
        end.is_some_and(|end| xxh3_128(&bytes[..end]) == page.checksum)
    }

    fn slot(&self, at: usize) -> Option<Slot> {
        let slot = self.bytes.get(at..at + 128)?;
        let root = (slot[1] != 0).then(|| pointer(slot, 8, 16)).flatten();
        let is_sound = number_128(slot, 112)? == xxh3_128(&slot[..112]);
        Some(Slot { is_sound, root, transaction: number_64(slot, 104)? })
    }

    /// The pages of a tree.
    pub fn tree(&self, root: Pointer) -> Tree {
        let mut walk = Walk { image: self, visited: HashSet::new(), tree: Tree::default() };
        walk.visit(root, KeyRange::default(), 0);
        walk.tree
    }

    /// Where the page of a number lies.
    fn page(&self, number: u64) -> Option<Range<usize>> {
        let order = u32::try_from(number >> 59).ok().filter(|order| *order <= 20)?;
        let index = usize::try_from(number & (0xf_ffff >> order)).ok()?;
        let region = number >> 20 & 0xf_ffff;
        let length = PAGE_BYTES << order;
        let start = PAGE_BYTES.checked_add(index.checked_mul(length)?)?;
        let end = start.checked_add(length)?;
        // The first region is longer than any file that is read here.
        (region == 0 && end <= self.bytes.len()).then_some(start..end)
    }

    /// Every page, each up to the end of the file: how long it is, it does not say.
    pub fn pages(&self) -> impl Iterator<Item = &[u8]> {
        (PAGE_BYTES..self.bytes.len()).step_by(PAGE_BYTES).map(|start| &self.bytes[start..])
    }
}

struct Walk<'a> {
    image: &'a Image,
    /// Pages by offset and the checksum that their parent keeps, so that a wrong pointer does not hide a right one.
    visited: HashSet<(usize, u128)>,
    tree: Tree,
}

impl Walk<'_> {
    fn visit(&mut self, page: Pointer, range: KeyRange, depth: usize) {
        let at = self
            .image
            .page(page.number)
            .filter(|at| depth < DEPTH_MAX && self.visited.insert((at.start, page.checksum)));
        let Some(at) = at else {
            self.tree.gaps.push(range);
            return;
        };
        let image = self.image;
        let bytes = &image.bytes[at.clone()];
        let branch = if bytes[0] == BRANCH { branch(bytes) } else { None };
        let is_sound = image.verifies(page);
        if !is_sound {
            self.tree.gaps.push(range.clone());
        }
        let Some(branch) = branch else {
            self.tree.leaves.push(Leaf { at, is_sound, range });
            return;
        };
        for (child, pointer) in branch.children.iter().enumerate() {
            // The keys of a damaged branch may be wrong: each child may then hold any key of the branch.
            let keys = if is_sound { branch.range(child, &range) } else { range.clone() };
            self.visit(*pointer, keys, depth + 1);
        }
    }
}

struct Branch<'a> {
    children: Vec<Pointer>,
    /// One less than children.
    keys: Vec<&'a [u8]>,
    end: usize,
}

impl Branch<'_> {
    /// The keys that a child may hold.
    fn range(&self, child: usize, outer: &KeyRange) -> KeyRange {
        let key = |at: usize| self.keys.get(at).map(|key| key.to_vec());
        let after = child.checked_sub(1).and_then(key).or_else(|| outer.after.clone());
        KeyRange { after, until: key(child).or_else(|| outer.until.clone()) }
    }
}

/// Reads a branch page; `None` when its parts do not fit into it.
fn branch(page: &[u8]) -> Option<Branch<'_>> {
    let keys = number_16(page, 2)?;
    let ends = BRANCH_HEADER_BYTES + CHILD_BYTES * (keys + 1);
    let numbers = BRANCH_HEADER_BYTES + 16 * (keys + 1);
    let children = (0..=keys).map(|child| pointer(page, numbers + 8 * child, BRANCH_HEADER_BYTES + 16 * child));
    let children: Vec<_> = children.collect::<Option<_>>()?;
    let mut start = ends + 4 * keys;
    let mut found = Vec::with_capacity(keys);
    for key in 0..keys {
        let end = number_32(page, ends + 4 * key)?;
        found.push(page.get(start..end)?);
        start = end;
    }
    (keys > 0).then_some(Branch { children, keys: found, end: start })
}

/// Where the last value of a leaf ends.
fn leaf_end(page: &[u8]) -> Option<usize> {
    let rows = number_16(page, 2)?;
    let end = number_32(page, LEAF_HEADER_BYTES + 4 * rows + 4 * rows.checked_sub(1)?)?;
    (page[0] == LEAF && end <= page.len()).then_some(end)
}

/// The rows of a sound leaf page.
pub(super) fn rows(page: &[u8]) -> Vec<(&[u8], &[u8])> {
    let rows = number_16(page, 2).unwrap_or(0);
    let row = |at: usize| -> Option<(&[u8], &[u8])> {
        let keys = LEAF_HEADER_BYTES;
        let values = keys + 4 * rows;
        let first = values + 4 * rows;
        let end_of = |ends: usize, at: usize| number_32(page, ends + 4 * at);
        let last_key = end_of(keys, rows - 1)?;
        let key_start = if at == 0 { first } else { end_of(keys, at - 1)? };
        let value_start = if at == 0 { last_key } else { end_of(values, at - 1)? };
        Some((page.get(key_start..end_of(keys, at)?)?, page.get(value_start..end_of(values, at)?)?))
    };
    (0..rows).filter_map(row).collect()
}

/// How it is known where a row ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The page says so.
    Said,
    /// It might end there.
    Guessed,
}

/// The rows of a page whose keys have [`KEY_BYTES`], as far as `accept` takes them; the page may be damaged anywhere.
///
/// Where a row does not begin or end where the page says, each other end that `accept` takes is tried.
pub(super) fn damaged_rows<'a>(page: &'a [u8], mut accept: impl FnMut(&'a [u8; KEY_BYTES], &'a [u8], End) -> bool) {
    let Some(rows) = row_count(page) else { return };
    let ends = LEAF_HEADER_BYTES + 4 * rows;
    let keys = ends + 4 * rows;
    let mut start = keys + KEY_BYTES * rows;
    for row in 0..rows {
        let at = keys + KEY_BYTES * row;
        let key = page.get(at..at + KEY_BYTES).and_then(|key| key.try_into().ok());
        let (Some(key), Some(said)) = (key, number_32(page, ends + 4 * row)) else { return };
        if page.get(start..said).is_some_and(|value| accept(key, value, End::Said)) {
            start = said;
            continue;
        }
        let limit = start.saturating_add(ROW_BYTES_MAX).min(page.len());
        let other = (start..limit).find(|end| *end != said && accept(key, &page[start..*end], End::Guessed));
        let plausible = said >= start && said <= page.len();
        start = other.unwrap_or(if plausible { said } else { start });
    }
}

/// Longer rows are not looked for where the page does not say that they end: a name is 1,280 bytes at most.
const ROW_BYTES_MAX: usize = 4096;

/// How many rows with keys of [`KEY_BYTES`] a leaf page holds: what it says, or what the end of one of its first keys
/// implies, if most ends of its keys agree.
fn row_count(page: &[u8]) -> Option<usize> {
    let ends_of_keys = |rows: usize| {
        let agrees = |row: &usize| {
            number_32(page, LEAF_HEADER_BYTES + 4 * row) == Some(LEAF_HEADER_BYTES + 8 * rows + KEY_BYTES * (row + 1))
        };
        (0..rows).filter(agrees).count()
    };
    let implied = |row: usize| {
        let end = number_32(page, LEAF_HEADER_BYTES + 4 * row)?;
        let ends = end.checked_sub(LEAF_HEADER_BYTES + KEY_BYTES * (row + 1))?;
        ends.is_multiple_of(8).then_some(ends / 8)
    };
    let candidates = [number_16(page, 2), implied(0), implied(1), implied(2)];
    let possible = candidates.into_iter().flatten().filter(|rows| *rows > 0 && *rows <= usize::from(u16::MAX));
    possible.filter(|rows| *rows == 1 || ends_of_keys(*rows) * 2 >= *rows).max_by_key(|rows| ends_of_keys(*rows))
}

/// The root of a table, of the row that describes it.
pub(super) fn table_root(definition: &[u8]) -> Option<Pointer> {
    // Kind of table, number of rows, whether there is a root, its page number, its checksum.
    definition.get(9).filter(|has_root| **has_root != 0)?;
    pointer(definition, 10, 18)
}

/// Whether the row says that a table has no rows.
pub(super) fn is_empty_table(definition: &[u8]) -> bool {
    definition.get(9) == Some(&0) && number_64(definition, 1) == Some(0)
}

fn pointer(bytes: &[u8], number: usize, checksum: usize) -> Option<Pointer> {
    Some(Pointer { number: number_64(bytes, number)?, checksum: number_128(bytes, checksum)? })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn number_16(bytes: &[u8], at: usize) -> Option<usize> {
    array(bytes, at).map(|bytes| usize::from(u16::from_le_bytes(bytes)))
}

fn number_32(bytes: &[u8], at: usize) -> Option<usize> {
    array(bytes, at).and_then(|bytes| usize::try_from(u32::from_le_bytes(bytes)).ok())
}

fn number_64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn number_128(bytes: &[u8], at: usize) -> Option<u128> {
    array(bytes, at).map(u128::from_le_bytes)
}
