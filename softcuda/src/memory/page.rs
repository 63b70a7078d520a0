//! A page of global memory: its words, which bytes are initialised, and who touched them in this launch.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::grid::Grid;
use super::shadow::Cell;

/// Pages are the unit of laziness and of locking.
pub const PAGE_BYTES: usize = 4096;
const WORDS: usize = PAGE_BYTES / 4;
/// Bytes whose initialised bits lie in one word.
pub const SECTOR: usize = 32;

/// Words that the host may read and write at the same address while a kernel runs.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Words([AtomicU32; WORDS]);

impl Words {
    pub fn new() -> Self {
        Self([const { AtomicU32::new(0) }; WORDS])
    }

    pub fn word(&self, index: usize) -> u32 {
        self.0[index].load(Relaxed)
    }

    pub fn set_word(&self, index: usize, value: u32) {
        self.0[index].store(value, Relaxed);
    }

    /// Copies bytes out, from an offset in the page.
    pub fn read(&self, from: usize, into: &mut [u8]) {
        let bytes = into.len();
        if from.is_multiple_of(4)
            && let Some(into) = into.first_chunk_mut::<4>().filter(|_| bytes == 4)
        {
            *into = self.word(from / 4).to_le_bytes();
            return;
        }
        if from.is_multiple_of(4) && into.len().is_multiple_of(4) {
            for (word, into) in self.0[from / 4..].iter().zip(into.chunks_exact_mut(4)) {
                into.copy_from_slice(&word.load(Relaxed).to_le_bytes());
            }
            return;
        }
        for (at, byte) in (from..).zip(into) {
            *byte = self.word(at / 4).to_le_bytes()[at % 4];
        }
    }

    /// True if these bytes lie at an offset.
    pub fn holds(&self, from: usize, bytes: &[u8]) -> bool {
        if let (true, (words, [])) = (from.is_multiple_of(4), bytes.as_chunks::<4>()) {
            let same = |(at, word): (usize, &[u8; 4])| self.word(at).to_le_bytes() == *word;
            return (from / 4..).zip(words).all(same);
        }
        (from..).zip(bytes).all(|(at, &byte)| self.word(at / 4).to_le_bytes()[at % 4] == byte)
    }

    /// Copies bytes in. The caller holds the page's lock, so only the host could interfere with a
    /// word that is written in part.
    pub fn write(&self, to: usize, bytes: &[u8]) {
        if to.is_multiple_of(4) && bytes.len().is_multiple_of(4) {
            for (word, bytes) in self.0[to / 4..].iter().zip(bytes.chunks_exact(4)) {
                word.store(u32::from_le_bytes(bytes.try_into().expect("four bytes")), Relaxed);
            }
            return;
        }
        for (at, &byte) in (to..).zip(bytes) {
            let mut word = self.word(at / 4).to_le_bytes();
            word[at % 4] = byte;
            self.set_word(at / 4, u32::from_le_bytes(word));
        }
    }
}

/// One for each sector of a page.
pub type Sectors<T> = [T; PAGE_BYTES / SECTOR];

/// What is known about a page's bytes.
#[derive(Debug)]
pub struct Known {
    /// One bit per byte, by sector.
    initialised: Sectors<u32>,
    /// By launch. Launches of several streams may run at once and touch the same page: each has its own
    /// memory of it, so that none makes another forget.
    touched: Vec<Touched>,
}

/// Who touched each sector of a page, in one launch.
#[derive(Debug)]
struct Touched {
    /// Gone when the launch is done: then another may take over.
    launch: Weak<Grid>,
    cells: Box<Sectors<Cell<SECTOR>>>,
}

impl Known {
    /// The initialised bits, and who touched each sector in a launch (`None`: not asked).
    pub fn parts(
        &mut self,
        launch: Option<&Arc<Grid>>,
    ) -> (&mut Sectors<u32>, &mut [Cell<SECTOR>]) {
        let Some(launch) = launch else { return (&mut self.initialised, &mut []) };
        let of = |touched: &Touched| std::ptr::eq(touched.launch.as_ptr(), Arc::as_ptr(launch));
        let index = match self.touched.iter().position(of) {
            Some(index) => index,
            None => self.begin(launch),
        };
        (&mut self.initialised, self.touched[index].cells.as_mut_slice())
    }

    /// A launch touches the page for the first time.
    fn begin(&mut self, launch: &Arc<Grid>) -> usize {
        let done = |touched: &Touched| touched.launch.strong_count() == 0;
        let launch = Arc::downgrade(launch);
        if let Some(index) = self.touched.iter().position(done) {
            let touched = &mut self.touched[index];
            touched.launch = launch;
            touched.cells.fill(Cell::default());
            return index;
        }
        let cells = Box::new(std::array::from_fn(|_| Cell::default()));
        self.touched.push(Touched { launch, cells });
        self.touched.len() - 1
    }

    /// The first byte of a range that nothing has written.
    pub fn uninitialised(&self, from: usize, bytes: usize) -> Option<usize> {
        spans(from, bytes).find_map(|(sector, mask)| {
            let missing = mask & !self.initialised[sector];
            (missing != 0).then(|| sector * SECTOR + missing.trailing_zeros() as usize)
        })
    }

    pub fn initialise(&mut self, from: usize, bytes: usize) {
        spans(from, bytes).for_each(|(sector, mask)| self.initialised[sector] |= mask);
    }

    pub fn forget(&mut self, from: usize, bytes: usize) {
        spans(from, bytes).for_each(|(sector, mask)| self.initialised[sector] &= !mask);
    }
}

/// The sectors of a range in a page, each with a bit per byte.
pub fn spans(from: usize, bytes: usize) -> impl Iterator<Item = (usize, u32)> {
    let end = from + bytes;
    (from / SECTOR..end.div_ceil(SECTOR)).map(move |sector| {
        let begin = sector * SECTOR;
        let low = from.saturating_sub(begin);
        let high = (end - begin).min(SECTOR);
        (sector, u32::MAX << low & u32::MAX >> (SECTOR - high))
    })
}

#[derive(Debug)]
pub struct Page {
    /// `None` if the allocation's words lie in one piece.
    words: Option<Box<Words>>,
    known: Mutex<Box<Known>>,
}

impl Page {
    /// A page of device memory, nothing initialised.
    pub fn new() -> Self {
        Self::with(Some(Box::new(Words::new())), 0)
    }

    /// What is known of a page whose words lie elsewhere and count as initialised.
    pub fn of_host() -> Self {
        Self::with(None, u32::MAX)
    }

    fn with(words: Option<Box<Words>>, initialised: u32) -> Self {
        let initialised = [initialised; PAGE_BYTES / SECTOR];
        let known = Known { initialised, touched: Vec::new() };
        Self { words, known: Mutex::new(Box::new(known)) }
    }

    pub fn words(&self) -> Option<&Words> {
        self.words.as_deref()
    }

    pub fn lock(&self) -> MutexGuard<'_, Box<Known>> {
        self.known.lock().expect("no panic while a page is locked")
    }
}
