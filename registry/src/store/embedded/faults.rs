//! A disk that a test can break: full, held up, or without power.
//!
//! Stands between redb and a real file. Writes go to a *cache* first and reach the file with the
//! next sync, as on a real machine; when the power is cut, an arbitrary part of what was not
//! synced is on the disk, and the rest is lost.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::{Builder, Database, DatabaseError, StorageBackend};

/// `ENOSPC` of Linux.
const NO_SPACE: i32 = 28;
/// `EIO` of Linux.
const INPUT_OUTPUT: i32 = 5;
/// `EROFS` of Linux.
const READ_ONLY: i32 = 30;

/// The switch of the disk. A clone is the same switch.
#[derive(Clone, Debug, Default)]
pub(super) struct Switch {
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    /// Writing operations so far.
    operations: u64,
    /// Syncs so far.
    syncs: u64,
    /// The first operation that fails, and how many do.
    fault: Option<Fault>,
    /// Whether syncs wait.
    held: bool,
    /// Whether the power is off.
    off: bool,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    first: u64,
    count: u64,
    effect: Effect,
}

/// What a fault does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    /// The operation fails for lack of room, nothing is written.
    Full,
    /// The operation fails, nothing is written: the medium is broken.
    Broken,
    /// The operation fails, nothing is written: the system takes no more writes on this disk.
    ReadOnly,
    /// The machine stops; a part of what was not synced is lost, as drawn from this seed.
    PowerCut(u64),
}

impl Switch {
    /// Makes `count` writing operations fail, after the next `after` that work.
    pub(super) fn break_after(&self, after: u64, count: u64, effect: Effect) {
        let mut state = self.lock();
        state.fault = Some(Fault { first: state.operations + after, count, effect });
    }

    /// Ends all faults; the power is on again.
    pub(super) fn repair(&self) {
        let mut state = self.lock();
        (state.fault, state.off) = (None, false);
    }

    /// Lets syncs wait until [`Self::release`].
    pub(super) fn hold(&self) {
        self.lock().held = true;
    }

    /// Ends [`Self::hold`].
    pub(super) fn release(&self) {
        self.lock().held = false;
        self.state.1.notify_all();
    }

    /// Returns how many writing operations there were.
    pub(super) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Makes a database on the faulty disk.
    pub(super) fn database(&self, file: File) -> Result<Database, DatabaseError> {
        let cache = Cache::load(&file)?;
        let backend = FaultyFile { switch: self.clone(), file, cache: Mutex::new(cache) };
        Builder::new().create_with_backend(backend)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    /// Counts a writing operation and says what becomes of it.
    fn operation(&self) -> Result<(), Effect> {
        let mut state = self.lock();
        let number = state.operations;
        state.operations += 1;
        match state.fault {
            Some(fault) if (fault.first..fault.first.saturating_add(fault.count)).contains(&number) => {
                state.off = matches!(fault.effect, Effect::PowerCut(_));
                Err(fault.effect)
            }
            _ => Ok(()),
        }
    }

    fn check_power(&self) -> io::Result<()> {
        if self.lock().off { Err(ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

#[derive(Debug)]
struct FaultyFile {
    switch: Switch,
    file: File,
    cache: Mutex<Cache>,
}

/// What programs see of the file, and what of it is not on the disk.
#[derive(Debug)]
struct Cache {
    content: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

impl Cache {
    fn load(file: &File) -> io::Result<Self> {
        let mut content = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
        file.read_exact_at(&mut content, 0)?;
        Ok(Self { content, unsynced: Vec::new() })
    }

    fn reach_disk(&mut self, file: &File, mut keeps: impl FnMut() -> bool) -> io::Result<()> {
        for change in self.unsynced.drain(..).filter(|_| keeps()) {
            match change {
                Change::Write { offset, data } => file.write_all_at(&data, offset)?,
                Change::SetLen(length) => file.set_len(length)?,
            }
        }
        Ok(())
    }
}

impl FaultyFile {
    /// Lets a writing operation happen or not.
    fn operation(&self) -> io::Result<()> {
        self.switch.check_power()?;
        match self.switch.operation() {
            Ok(()) => Ok(()),
            Err(Effect::Full) => Err(io::Error::from_raw_os_error(NO_SPACE)),
            Err(Effect::Broken) => Err(io::Error::from_raw_os_error(INPUT_OUTPUT)),
            Err(Effect::ReadOnly) => Err(io::Error::from_raw_os_error(READ_ONLY)),
            Err(Effect::PowerCut(seed)) => {
                let mut luck = StdRng::seed_from_u64(seed);
                self.cache.lock().unwrap().reach_disk(&self.file, || luck.random())?;
                Err(ErrorKind::BrokenPipe.into())
            }
        }
    }
}

impl StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.switch.check_power()?;
        Ok(self.cache.lock().unwrap().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.switch.check_power()?;
        let cache = self.cache.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let found = cache.content.get(start..start + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.operation()?;
        let mut cache = self.cache.lock().unwrap();
        cache.content.resize(usize::try_from(length).unwrap(), 0);
        cache.unsynced.push(Change::SetLen(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operation()?;
        let mut state = self.switch.lock();
        while state.held {
            state = self.switch.state.1.wait(state).unwrap();
        }
        state.syncs += 1;
        drop(state);
        self.cache.lock().unwrap().reach_disk(&self.file, || true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operation()?;
        let mut cache = self.cache.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        cache.content[start..start + data.len()].copy_from_slice(data);
        cache.unsynced.push(Change::Write { offset, data: data.to_vec() });
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        // The cache of the machine outlives the program, but not the power.
        self.switch.check_power()?;
        self.cache.lock().unwrap().reach_disk(&self.file, || true)
    }
}
