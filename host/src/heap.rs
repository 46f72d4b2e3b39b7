//! Memory that the allocator keeps for later, given back to the machine.

/// Gives back what is free. glibc by itself gives back only the end of a heap: of ten thousand components that came one after
/// the other as much again stayed as they use. It takes some milliseconds, in which others may wait for memory; other
/// allocators give back by themselves.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "no safe call of it is at hand; it takes no pointer and locks what it looks at")]
    unsafe {
        libc::malloc_trim(0);
    }
}
