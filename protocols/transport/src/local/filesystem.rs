//! Which file systems hold what the kernel makes up, and not what somebody has stored.

use std::os::fd::AsFd;

/// Magic numbers of such file systems (`linux/magic.h`, `statfs(2)`).
const MADE_UP: [u32; 13] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x6265_6570, // configfs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0xde5e_81e4, // efivarfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
];

/// Whether the kernel makes up the file at `fd`. Its length says nothing then, reading it may depend on who reads, and
/// writing it does something.
///
/// # Errors
/// The descriptor cannot be looked at.
pub fn is_made_up(fd: impl AsFd) -> rustix::io::Result<bool> {
    // The type of this field differs between architectures; the number has 32 bits.
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let magic = rustix::fs::fstatfs(fd)?.f_type as u32;
    Ok(MADE_UP.contains(&magic))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn files_of_the_kernel_are_told_from_stored_ones() {
        let stored = tempfile::tempfile().expect("a file");
        let rows = [(File::open("/proc/self/status"), true), (File::open("/sys/kernel"), true), (Ok(stored), false)];
        for (file, made_up) in rows {
            let file = file.expect("opens");
            assert_eq!(is_made_up(&file).expect("looks"), made_up, "{file:?}");
        }
    }
}
