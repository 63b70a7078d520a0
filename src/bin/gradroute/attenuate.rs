//! The region dial as an operation on a checkpoint.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gradroute::provenance::query::{Archive, Citation, Overlap, Subject};
use gradroute::provenance::{
    Accumulator, Attenuation, BlockEffect, GroupInfluence, Measured, Predicted, Question,
    RegionEffect, folded,
};
use gradroute::routing::{Categories, CompiledPolicy, ModelLayout, Policy};
use gradroute::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::attenuated;
use crate::dials::{AttenuateArguments, DialArgument};
use crate::export::io;
use crate::integrity::opened;
use crate::shown::Shown;

/// The answer for programs.
#[derive(Serialize)]
pub struct Answer<'a> {
    pub policy_hash: String,
    pub dials: &'a [DialArgument],
    pub checkpoint: Tensors<'a>,
    /// What was folded into it before, a line for each time.
    pub earlier: Vec<String>,
    /// The ledger's entry that holds this very checkpoint, if one does.
    pub ledger_entry: Option<u64>,
    /// `file` is none where nothing was written.
    pub attenuated: Tensors<'a>,
    pub predicted: Prediction,
    pub measured: Option<Measured>,
    pub citation: Option<Citation>,
}

#[derive(Serialize)]
pub struct Tensors<'a> {
    pub file: Option<&'a Path>,
    pub bytes: usize,
    pub blake3: String,
}

/// From weights, policy and ledger.
#[derive(Serialize)]
pub struct Prediction {
    pub blocks: Vec<BlockEffect>,
    pub regions: Vec<RegionEffect>,
    pub reached: Option<f64>,
    /// Of each dialled category that the ledger saw.
    pub overlap: Vec<Overlap>,
}

/// The file of `--losses`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Losses {
    before: Answers,
    after: Answers,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    blake3: String,
    forget: Vec<f64>,
    retain: Vec<f64>,
}

/// The policy in force, and the ledger it is from, if it is from one.
struct Source {
    policy: CompiledPolicy,
    archive: Option<Archive>,
}

pub fn attenuate(question: &AttenuateArguments, quiet: bool) -> Result<Shown> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let style = ProgressStyle::with_template("{spinner} {msg} · {bytes} of the checkpoint read");
    bar.set_style(style.expect("a valid template"));
    bar.enable_steady_tick(Duration::from_millis(120));
    check_out(question)?;
    bar.set_message("reading policy and ledger");
    let source = Source::of(question, quiet)?;
    let attenuation = set(&source.policy, question, &question.dials)?;
    bar.set_message("reading");
    let before = read(&question.checkpoint, &bar)?;
    bar.set_message("predicting");
    let predicted = attenuation.dry_run(&before, &source.groups()?)?;
    bar.set_message("folding");
    let after = attenuation.apply(&before)?;
    bar.set_message("hashing");
    let [of_before, of_after] =
        [&before, &after].map(|bytes| blake3::hash(bytes).to_hex().to_string());
    let measured = match &question.losses {
        Some(path) => Some(measured(path, [&before, &after], [&of_before, &of_after])?),
        None => None,
    };
    if let Some(path) = &question.out {
        bar.set_message("writing");
        write(path, &after, question.force)?;
    }
    bar.finish_and_clear();
    let file = |file, bytes: &[u8], blake3| Tensors { file, bytes: bytes.len(), blake3 };
    attenuated::shown(
        &Answer {
            policy_hash: source.policy.hash().to_string(),
            dials: &question.dials,
            ledger_entry: source.entry_of(&of_before),
            earlier: folded(&before)?,
            checkpoint: file(Some(&question.checkpoint), &before, of_before),
            attenuated: file(question.out.as_deref(), &after, of_after),
            predicted: source.prediction(predicted, &question.dials)?,
            measured,
            citation: source.archive.as_ref().map(Archive::citation),
        },
        question.top,
    )
}

impl Source {
    fn of(question: &AttenuateArguments, quiet: bool) -> Result<Self> {
        let layout = question.layout.as_deref().map(layout).transpose()?;
        let Some(ledger) = &question.ledger else {
            let path = question.policy.as_ref().expect("clap asks for a ledger or a policy");
            let text = std::fs::read_to_string(path).map_err(io(path))?;
            let policy = Policy::from_toml(&text)?;
            let layout = layout.expect("clap asks for a layout with a policy");
            let policy = policy.compile(&layout, &categories(&policy)?)?;
            return Ok(Self { policy, archive: None });
        };
        let archive = opened(ledger, quiet)?;
        let mut info = archive.reader().info().clone();
        info.layout = layout.or(info.layout);
        Ok(Self { policy: info.compile()?, archive: Some(archive) })
    }

    /// What the ledger saw of the policy's categories.
    fn groups(&self) -> Result<GroupInfluence> {
        let categories = self.policy.categories();
        let count = categories.len();
        let Some(archive) = &self.archive else {
            return Accumulator::new(self.policy.blocks().len(), 1)?.groups(count, |_| None);
        };
        let ids = categories.ids().map(|id| (categories.name(id), id as usize));
        let ids: HashMap<String, usize> = ids.collect();
        let of = |sample| ids.get(&archive.sample(sample).ok()?.category).copied();
        archive.influence().groups(count, of)
    }

    /// The commit that this checkpoint is of.
    fn entry_of(&self, blake3: &str) -> Option<u64> {
        let mut entries = self.archive.as_ref()?.reader().entries().iter();
        let held = entries.find(|it| it.checkpoint.iter().any(|file| file.blake3 == blake3));
        held.map(|entry| entry.index)
    }

    fn prediction(&self, predicted: Predicted, dials: &[DialArgument]) -> Result<Prediction> {
        let categories: BTreeSet<&String> = dials.iter().map(|dial| &dial.category).collect();
        let mut overlap = Vec::new();
        // Where nothing changes, nobody loses.
        let archive = self.archive.iter().filter(|_| !predicted.blocks.is_empty());
        for (archive, name) in archive.flat_map(|it| categories.iter().map(move |c| (it, c))) {
            let category = name.parse()?;
            // A category nobody trained on moved nothing, and shares nothing.
            if archive.members(&Subject::Category(category)).is_ok() {
                overlap.push(archive.overlap(&name.parse()?, None)?);
            }
        }
        let Predicted { blocks, regions, reached, .. } = predicted;
        Ok(Prediction { blocks, regions, reached, overlap })
    }
}

/// Sets the dials, each of which must have something to turn.
fn set<'a>(
    policy: &'a CompiledPolicy,
    question: &AttenuateArguments,
    dials: &[DialArgument],
) -> Result<Attenuation<'a>> {
    let fold = |dials: &[DialArgument]| -> Result<Attenuation<'a>> {
        let dials = dials.iter().map(DialArgument::parsed).collect::<Result<Vec<_>>>()?;
        let attenuation = Attenuation::new(policy, &dials)?;
        question.fade_rows.iter().try_fold(attenuation, Attenuation::fade_rows)
    };
    for dial in dials {
        if dial.at != 1.0 && fold(std::slice::from_ref(dial))?.edits().is_empty() {
            return Err(Error::Refused {
                what: format!("attenuating {dial}"),
                reason: "no weight reads the category's regions there, so nothing would change; \
                         leave @BLOCK out, or name the block of the layers that read them"
                    .into(),
            });
        }
    }
    fold(dials)
}

/// Without a ledger: the categories that the policy names.
fn categories(policy: &Policy) -> Result<Categories> {
    let profiles = policy.profiles().iter().map(|profile| &profile.category);
    let mut named: BTreeSet<_> = profiles.filter(|path| path.depth() > 0).collect();
    for region in policy.regions() {
        if !named.iter().any(|path| path.within(&region.owner)) {
            named.insert(&region.owner);
        }
    }
    Categories::new(named.into_iter().map(|path| path.as_str()))
}

fn layout(path: &Path) -> Result<ModelLayout> {
    let text = std::fs::read(path).map_err(io(path))?;
    serde_json::from_slice(&text).map_err(|error| Error::Argument {
        argument: "--layout".into(),
        expected: "the model's layers as JSON, like `layout` in a ledger's run.json".into(),
        given: format!("{}: {error}", path.display()),
    })
}

/// What the losses say, if they are of these checkpoints.
fn measured(path: &Path, [before, after]: [&[u8]; 2], digests: [&str; 2]) -> Result<Measured> {
    let text = std::fs::read(path).map_err(io(path))?;
    let losses: Losses = serde_json::from_slice(&text).map_err(|error| Error::Argument {
        argument: "--losses".into(),
        expected: "{before, after}, each {blake3, forget, retain}, as JSON".into(),
        given: format!("{}: {error}", path.display()),
    })?;
    let sides = [("before", &losses.before), ("after", &losses.after)];
    for ((side, answers), digest) in sides.into_iter().zip(digests) {
        if answers.blake3 != digest {
            return Err(Error::Argument {
                argument: format!("losses.{side}.blake3"),
                expected: format!("the digest of the checkpoint {side}, {digest}"),
                given: answers.blake3.clone(),
            });
        }
    }
    Measured::new(before, after, |checkpoint, question| {
        let own = std::ptr::eq(checkpoint, before);
        let answers = if own { &losses.before } else { &losses.after };
        Ok(match question {
            Question::Forget => answers.forget.clone(),
            Question::Retain => answers.retain.clone(),
        })
    })
}

fn read(path: &Path, bar: &ProgressBar) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(io(path))?;
    let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |it| it.len() as usize));
    bar.wrap_read(file).read_to_end(&mut bytes).map_err(io(path))?;
    Ok(bytes)
}

/// Before anything long is done.
fn check_out(question: &AttenuateArguments) -> Result<()> {
    let Some(path) = &question.out else { return Ok(()) };
    let same = |a: &PathBuf, b: &PathBuf| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
    if same(path, &question.checkpoint) == Some(true) {
        return Err(Error::Argument {
            argument: "--out".into(),
            expected: "another file than the checkpoint, which a dial cannot bring back".into(),
            given: path.display().to_string(),
        });
    }
    if path.exists() && !question.force { Err(there_already(path)) } else { Ok(()) }
}

fn there_already(path: &Path) -> Error {
    Error::Argument {
        argument: "--out".into(),
        expected: "a file that is not there yet, or --force".into(),
        given: path.display().to_string(),
    }
}

/// Under another name first: who finds the file finds all of it.
fn write(path: &Path, bytes: &[u8], force: bool) -> Result<()> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As of any new file, less the umask.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.suffix(".tmp").tempfile_in(folder).map_err(io(folder))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io(path))?;
    let placed = if force { file.persist(path) } else { file.persist_noclobber(path) };
    placed.map(drop).map_err(|error| match error.error.kind() {
        ErrorKind::AlreadyExists => there_already(path),
        _ => io(path)(error.error),
    })
}
