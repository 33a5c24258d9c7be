//! A state machine that counts.

use raft_host::{
    Bytes, BytesMut, Command, SaveCursor, SaveStep, SnapshotRead, StateMachine, StateMachineError,
};

#[derive(Default)]
pub(crate) struct Counter {
    commands: u64,
    bytes: u64,
}

impl StateMachine for Counter {
    fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError> {
        self.commands += 1;
        self.bytes += u64::try_from(command.payload.len()).unwrap_or(u64::MAX);
        Ok(Bytes::new())
    }

    fn query(&mut self, _query: &[u8]) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::copy_from_slice(&self.commands.to_le_bytes()))
    }

    fn save_next(
        &mut self,
        _cursor: &mut SaveCursor,
        out: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError> {
        out.extend_from_slice(&self.commands.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        Ok(SaveStep::Done)
    }

    fn restore(&mut self, source: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
        let block = source.next()?.unwrap_or_default();
        let word = |at: usize| Some(u64::from_le_bytes(block.get(at..at + 8)?.try_into().ok()?));
        match (word(0), word(8)) {
            (Some(commands), Some(bytes)) => {
                (self.commands, self.bytes) = (commands, bytes);
                Ok(())
            }
            _ => Err(StateMachineError("two numbers were expected".to_owned())),
        }
    }

    fn state_hash(&mut self) -> u64 {
        self.commands.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.bytes
    }
}
