//! The command line's grammar and help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gradroute::provenance::Similarity;
use gradroute::provenance::query::{Place, Subject};

use crate::dials::{self, AttenuateArguments};

/// Answers from a gradroute ledger: whose data shaped which part of a model.
///
/// A ledger is the directory a trainer wrote while it trained. Every answer says what it rests
/// on: the ledger's head, the policy's hash, steps, segments and samples (all of it with --json).
/// Numbers read off sketches come with their standard deviation, as value ± deviation.
#[derive(Parser)]
#[command(version, after_long_help = AFTER)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub output: Output,
}

const AFTER: &str = "\
Exit status:
  0  the question was answered; for `verify`, the ledger is in order
  1  it could not be answered; the reason is on standard error
  2  the command line could not be understood
  3  `verify` found something wrong

Examples:
  gradroute inspect runs/ledger
  gradroute trace forward runs/ledger --category style/script
  gradroute trace backward runs/ledger --block up --level 2
  gradroute trace output runs/ledger --query drawn.json --html drawn.html
  gradroute attenuate model.safetensors --ledger runs/ledger --dial style/script=0 --dry-run
  gradroute verify runs/ledger --head 5f0c… --public-key signer.pem
  gradroute export runs/ledger influence --format parquet --out influence.parquet";

/// How answers are given.
#[derive(Args)]
pub struct Output {
    /// Print the answer as JSON, with everything it cites
    #[arg(long, global = true)]
    pub json: bool,
    /// Write the answer as one HTML page with pictures inside
    #[arg(long, global = true, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Show no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// What a ledger holds: run, blocks, categories, regions, coverage
    Inspect {
        /// Directory of the ledger
        ledger: PathBuf,
    },
    /// Follow influence: forward from data, backward from a block, back from an output
    #[command(subcommand)]
    Trace(Trace),
    /// How deep a sample or category went: its profile over the blocks against the corpus'
    Depth {
        /// Directory of the ledger
        ledger: PathBuf,
        #[command(flatten)]
        subject: SubjectArguments,
        /// Add the corpus up by the first N names of the categories
        #[arg(long, value_name = "N")]
        level: Option<usize>,
    },
    /// Which categories share directions with one: predicted collateral of attenuating it
    Overlap {
        /// Directory of the ledger
        ledger: PathBuf,
        /// The category, or the root of a subtree of them
        #[arg(long)]
        category: String,
        /// Cut the other categories to their first N names
        #[arg(long, value_name = "N")]
        level: Option<usize>,
    },
    /// What each category moved that nobody else did: who would be missed most
    ///
    /// Needs no query. Of 14 typefaces it predicted best what training without one does to its own loss; of 27
    /// `trace output` by phases did better (benches/record/categories-glyphs.md, categories-typefaces.md). Amounts have
    /// no unit: compare them within one ledger.
    Alone {
        /// Directory of the ledger
        ledger: PathBuf,
        /// Cut categories to their first N names
        #[arg(long, value_name = "N")]
        level: Option<usize>,
        /// Damping of the whitening, times the mean diagonal
        #[arg(long, default_value_t = 0.1)]
        damping: f64,
    },
    /// Signs of memorization that the record holds: copies, near-duplicates, norms, exposure
    ///
    /// A list of candidates, no verdict. Of a run that was guarded (its description holds the
    /// guard's configuration, see guard::GuardConfig::record_in) the guard is rebuilt from the
    /// ledger's events: scores, clusters of near-duplicates by the run's own fingerprints, and
    /// which gates were closed, when and why. Of any other run only what all ledgers hold is
    /// known; there, what is fitted has a low gradient norm late in training and a high one
    /// early: judge the loudness by how long the run was.
    Memorized(MemorizedArguments),
    /// Turn down what a category taught a model: its regions' dial, folded into a checkpoint
    ///
    /// Safetensors in, safetensors out. Says what would be touched and what it may cost others
    /// (--dry-run writes nothing), and what it did where losses on both checkpoints are given
    /// (--losses). Never replaces a file unless --force says so.
    #[command(after_long_help = dials::AFTER)]
    Attenuate(AttenuateArguments),
    /// Check everything the manifest covers and name all that was altered
    ///
    /// Compares every file with its digest and every entry with its hash and the one before, and
    /// reports all that is wrong. Newest entries that were cut off show only against a head that
    /// was kept elsewhere (--head) or signed (--public-key).
    Verify(VerifyArguments),
    /// Sign the ledger's head with an Ed25519 key
    ///
    /// Writes signature.json beside the manifest. Make a key with
    /// `openssl genpkey -algorithm ed25519 -out key.pem`, its public half with
    /// `openssl pkey -in key.pem -pubout -out public.pem`.
    Sign {
        /// Directory of the ledger
        ledger: PathBuf,
        /// Private key, PKCS#8 PEM
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Write a part of a ledger as CSV, JSON or Parquet
    Export(ExportArguments),
    /// Lay a ledger's influence out for questions over more samples than fit into memory
    ///
    /// Writes a directory of plain Parquet tables, one per block, that `top` and any SQL engine
    /// read from front to back. Takes 1 GiB of memory at most beside 40 bytes per sample.
    Index(IndexArguments),
    /// The samples most for and most against an output, from an index
    ///
    /// Reads block by block and holds 24 bytes per sample. Scores are those of `trace output`; what that says
    /// beyond them, of categories, near-duplicates and uncertainty, needs the ledger in memory.
    Top(TopArguments),
}

#[derive(Subcommand)]
pub enum Trace {
    /// From a sample or category to blocks, regions, steps, noise levels and amounts
    Forward {
        /// Directory of the ledger
        ledger: PathBuf,
        #[command(flatten)]
        subject: SubjectArguments,
    },
    /// From a block or region to the categories and samples that moved it
    Backward {
        /// Directory of the ledger
        ledger: PathBuf,
        #[command(flatten)]
        place: PlaceArguments,
        #[command(flatten)]
        grouping: Grouping,
    },
    /// From an output to the samples and categories behind it, for and against
    Output(OutputArguments),
}

#[derive(Args)]
pub struct Grouping {
    /// Cut categories to their first N names
    #[arg(long, value_name = "N")]
    pub level: Option<usize>,
    /// Samples listed
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct SubjectArguments {
    /// A sample, by its id
    #[arg(long, value_name = "ID")]
    sample: Option<u64>,
    /// A category, or the root of a subtree of them
    #[arg(long, value_name = "PATH")]
    category: Option<String>,
}

impl SubjectArguments {
    pub fn parsed(&self) -> gradroute::Result<Subject> {
        match (self.sample, &self.category) {
            (Some(id), _) => Ok(Subject::Sample(id)),
            (None, path) => Ok(Subject::Category(path.as_deref().unwrap_or("/").parse()?)),
        }
    }
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct PlaceArguments {
    /// A block of the policy
    #[arg(long, value_name = "NAME")]
    block: Option<String>,
    /// An owned region of the policy
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
}

impl PlaceArguments {
    pub fn parsed(&self) -> Place {
        match (&self.block, &self.region) {
            (Some(name), _) => Place::Block(name.clone()),
            (None, name) => Place::Region(name.clone().unwrap_or_default()),
        }
    }
}

#[derive(Args)]
pub struct OutputArguments {
    /// Directory of the ledger
    pub ledger: PathBuf,
    #[command(flatten)]
    pub query: QueryArguments,
    /// Damping of the whitening, times the mean diagonal
    #[arg(long, value_name = "X", default_value_t = 0.1, conflicts_with = "plain")]
    pub damping: f64,
    /// Use the plain inner product instead of the whitened one
    #[arg(long)]
    pub plain: bool,
    /// What is done about the sizes of query and samples
    #[arg(long, value_enum, default_value_t = Score::Dot)]
    pub score: Score,
    #[command(flatten)]
    pub grouping: Grouping,
    /// Mean cosine from which samples are reported as one group
    #[arg(long, value_name = "X", default_value_t = 0.9)]
    pub alike: f64,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct QueryArguments {
    /// Sketched gradients of the output, as provenance::Query::write leaves them
    ///
    /// Given several times, the run is judged in as many phases of equal length: the gradients are those of
    /// the model at the end of each, from its checkpoints, by the same draws. On the glyphs four phases
    /// predict retraining better than one (benches/record/lds-glyphs.md).
    #[arg(long, value_name = "FILE")]
    pub query: Vec<PathBuf>,
    /// Ask with what a training sample did, in place of an output
    #[arg(long, value_name = "ID")]
    pub like: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Score {
    /// First-order influence
    Dot,
    /// Direction alone
    Cosine,
    /// By the root of the sample's influence on itself
    SelfInfluence,
}

impl From<Score> for Similarity {
    fn from(score: Score) -> Self {
        match score {
            Score::Dot => Self::Dot,
            Score::Cosine => Self::Cosine,
            Score::SelfInfluence => Self::SelfInfluence,
        }
    }
}

#[derive(Args)]
pub struct MemorizedArguments {
    /// Directory of the ledger
    pub ledger: PathBuf,
    /// Samples listed
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// Mean cosine from which samples count as near-duplicates
    #[arg(long, value_name = "X", default_value_t = 0.9)]
    pub alike: f64,
    /// Search for near-duplicates up to this many samples; the work grows with their square
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub search: usize,
}

#[derive(Args)]
pub struct VerifyArguments {
    /// Directory of the ledger
    pub ledger: PathBuf,
    /// A head that was kept elsewhere; it must be in the chain
    #[arg(long, value_name = "HASH", value_parser = whole_hash)]
    pub head: Option<String>,
    /// Public key of the signer, PEM; the ledger must be signed with it
    #[arg(long, value_name = "FILE")]
    pub public_key: Option<PathBuf>,
}

#[derive(Args)]
pub struct ExportArguments {
    /// Directory of the ledger
    pub ledger: PathBuf,
    /// What to write
    #[arg(value_enum)]
    pub table: Table,
    /// Of a category or subtree only
    #[arg(long, value_name = "PATH")]
    pub category: Option<String>,
    /// Of one sample only
    #[arg(long, value_name = "ID", conflicts_with = "category")]
    pub sample: Option<u64>,
    /// Form of the file
    #[arg(long, value_enum, default_value_t = Form::Csv)]
    pub format: Form,
    /// The file; it is replaced if it is there
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

impl ExportArguments {
    pub fn subject(&self) -> gradroute::Result<Option<Subject>> {
        Ok(match (self.sample, &self.category) {
            (Some(id), _) => Some(Subject::Sample(id)),
            (None, Some(path)) => Some(Subject::Category(path.parse()?)),
            (None, None) => None,
        })
    }
}

#[derive(Args)]
pub struct IndexArguments {
    /// Directory of the ledger
    pub ledger: PathBuf,
    /// Directory of the index; new or empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Keep sketches as signed bytes in place of half precision: half the size
    #[arg(long)]
    pub int8: bool,
}

#[derive(Args)]
pub struct TopArguments {
    /// Directory of the index
    pub index: PathBuf,
    /// Sketched gradients of the output, as provenance::Query::write leaves them
    #[arg(long, value_name = "FILE")]
    pub query: PathBuf,
    /// Damping of the whitening, times the mean diagonal
    #[arg(long, value_name = "X", default_value_t = 0.1, conflicts_with = "plain")]
    pub damping: f64,
    /// Use the plain inner product instead of the whitened one
    #[arg(long)]
    pub plain: bool,
    /// What is done about the sizes of query and samples; with --plain, since an index keeps the plain sizes alone
    #[arg(long, value_enum, default_value_t = Score::Dot)]
    #[arg(requires_ifs([("cosine", "plain"), ("self-influence", "plain")]))]
    pub score: Score,
    /// One block alone
    #[arg(long, value_name = "NAME")]
    pub block: Option<String>,
    /// Samples listed on either side
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Say what part of each score comes from which block
    #[arg(long)]
    pub shares: bool,
    /// Compare every file with its digest before
    #[arg(long)]
    pub check: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Table {
    /// A line per sample: id, category, content hash
    Samples,
    /// A line per sample and block: accumulated amounts
    Influence,
    /// A line per sample and step: noise level, step size, gate, norms and weights by block
    Events,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Form {
    Csv,
    Json,
    Parquet,
}

/// A hash in whole: a part of one, or something else, would be told as tampering.
fn whole_hash(text: &str) -> Result<String, String> {
    let hash = text.trim().to_ascii_lowercase();
    match hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        true => Ok(hash),
        false => Err("64 hexadecimal digits, as `gradroute verify` prints them".into()),
    }
}
