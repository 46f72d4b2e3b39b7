//! How a bounded number of things is shared among those who want them. Pure.

/// Whether who holds so many may have one more of those that are free: while it has at most as many as are left. Alone it
/// can have half of all, two can have a third each, and so on: there is always room for who has none, however many the
/// others would take.
pub(crate) fn is_within_share<T: Ord>(held: T, free: T) -> bool {
    held <= free
}
