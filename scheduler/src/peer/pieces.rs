//! Messages too large for one frame, cut into pieces and put together again. Pure. Must never hold more than a sender
//! may send, nor set memory aside for what was only announced.

use proto::v1 as pb;

/// Messages above this size are cut.
pub(super) const PIECE_BYTES: usize = 512 * 1024;
/// No message is larger: a snapshot of the largest state that is thought of.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// The piece that begins at `offset`; none behind the end.
pub(super) fn piece(message: &[u8], offset: usize) -> Option<pb::PeerPiece> {
    let rest = message.get(offset..).filter(|rest| !rest.is_empty())?;
    let data = rest[..rest.len().min(PIECE_BYTES)].to_vec();
    Some(pb::PeerPiece { size: message.len() as u64, offset: offset as u64, data })
}

/// What has come of one message.
#[derive(Default)]
pub(super) struct Assembly {
    size: usize,
    bytes: Vec<u8>,
}

impl Assembly {
    /// Takes the next piece; gives the message once it is whole. A first piece begins anew.
    pub(super) fn take(&mut self, piece: pb::PeerPiece) -> Result<Option<Vec<u8>>, &'static str> {
        let size = usize::try_from(piece.size).ok().filter(|size| *size <= MESSAGE_BYTES_MAX);
        let size = size.ok_or("a message larger than any may be")?;
        if piece.data.is_empty() || piece.data.len() > 2 * PIECE_BYTES {
            return Err("a piece of no size, or of too large a one");
        }
        if piece.offset == 0 {
            *self = Self { size, bytes: Vec::new() };
        }
        if size != self.size || piece.offset != self.bytes.len() as u64 || self.bytes.len() + piece.data.len() > size {
            return Err("a piece that does not follow the one before");
        }
        self.bytes.extend_from_slice(&piece.data);
        if self.bytes.len() < size {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(message: &[u8]) -> Vec<pb::PeerPiece> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        while let Some(next) = piece(message, offset) {
            offset += next.data.len();
            pieces.push(next);
        }
        pieces
    }

    #[test]
    fn a_message_comes_out_as_it_went_in() {
        let message: Vec<u8> = (0..PIECE_BYTES * 3 + 17).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut assembly = Assembly::default();
        // Cut off in the middle, it is sent again from the start.
        assert_eq!(assembly.take(sent(&message).remove(0)), Ok(None));
        let mut whole = None;
        let pieces = sent(&message);
        assert_eq!(pieces.len(), 4);
        for piece in pieces {
            assert!(whole.is_none());
            whole = assembly.take(piece).unwrap();
        }
        assert_eq!(whole.as_deref(), Some(message.as_slice()));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let piece = |size: u64, offset: u64, len: usize| pb::PeerPiece { size, offset, data: vec![7; len] };
        let refused = |pieces: Vec<pb::PeerPiece>| {
            let mut assembly = Assembly::default();
            pieces.into_iter().map(|piece| assembly.take(piece)).any(|taken| taken.is_err())
        };
        assert!(refused(vec![piece(u64::MAX, 0, 1)]));
        assert!(refused(vec![piece(MESSAGE_BYTES_MAX as u64 + 1, 0, 1)]));
        assert!(refused(vec![piece(10, 5, 5)]), "no beginning");
        assert!(refused(vec![piece(10, 0, 5), piece(10, 6, 4)]), "a gap");
        assert!(refused(vec![piece(10, 0, 5), piece(11, 5, 5)]), "another size");
        assert!(refused(vec![piece(10, 0, 11)]), "more than announced");
        assert!(refused(vec![piece(10, 0, 0)]));
        assert!(refused(vec![piece(1 << 29, 0, 2 * PIECE_BYTES + 1)]));
        assert!(!refused(vec![piece(10, 0, 5), piece(10, 5, 5)]));
    }
}
