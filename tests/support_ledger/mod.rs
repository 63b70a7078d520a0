//! A small ledger that is the same every time.

#![allow(dead_code)] // each test uses its part of it

use gradroute::guard::{Guard, GuardConfig};
use gradroute::projection::{SketchKind, philox4x32};
use gradroute::provenance::StepRecord;
use gradroute::provenance::ledger::{BlockInfo, LayerInfo, Ledger, RunInfo, SampleInfo};
use gradroute::routing::Policy;

pub const SAMPLES: u64 = 12;
pub const BATCH: usize = 5;
pub const BLOCKS: usize = 2;
pub const K: usize = 64;

const POLICY: &str = r#"
    [[block]]
    name = "down"
    layers = "down.*"

    [[block]]
    name = "up"
    layers = "up.*"

    [[region]]
    name = "script"
    owner = "style/script"
    parts = [{ layers = "up.*", outputs = "-2.." }]

    [[profile]]
    category = "style"
"#;

const CATEGORIES: [&str; 4] =
    ["style/script/kristi", "style/serif/cardo", "style/script/allura", "style/serif/gelasio"];

/// Ids are large, so that a mix-up with an index cannot pass.
pub fn id(n: u64) -> u64 {
    1 << 40 | n
}

pub fn category(id: u64) -> &'static str {
    CATEGORIES[(id % (1 << 40) / 3) as usize % CATEGORIES.len()]
}

/// Samples 0 and 1 have the same content.
pub fn info() -> RunInfo {
    let sample = |n: u64| SampleInfo {
        id: id(n),
        category: category(id(n)).into(),
        content_hash: *blake3::hash(&n.max(1).to_le_bytes()).as_bytes(),
    };
    let block = |name: &str| BlockInfo {
        name: name.into(),
        layers: vec![LayerInfo { path: format!("{name}.conv"), parameters: 1234 }],
    };
    let policy = Policy::from_toml(POLICY).unwrap();
    RunInfo {
        samples: (0..SAMPLES).map(sample).collect(),
        blocks: vec![block("down"), block("up")],
        policy: policy.to_toml(),
        policy_hash: policy.hash().to_string(),
        noise_edges: vec![0.1, 0.7],
        metadata: [("model_parameters".to_owned(), "10000".to_owned())].into(),
        created: 1_700_000_000,
        ..RunInfo::new(SketchKind::Count { buckets: K }, 5)
    }
}

/// Numbers between -1 and 1.
pub fn draws(what: u32, step: u64, count: usize) -> Vec<f32> {
    let draw = |n| philox4x32([n as u32, what, step as u32, 0], [1, 2])[0];
    (0..count).map(|n| draw(n) as f32 / 2f32.powi(31) - 1.0).collect()
}

/// The record of a step: any numbers, but always the same.
pub fn record(step: u64) -> StepRecord {
    let mut noise_levels: Vec<f32> = draws(0, step, BATCH).iter().map(|it| it.abs()).collect();
    noise_levels[(step % BATCH as u64) as usize] = f32::NAN;
    let mut sq_norm: Vec<f32> = draws(1, step, BATCH * BLOCKS).iter().map(|it| it * it).collect();
    if step % 5 == 2 {
        sq_norm[3] = f32::INFINITY;
    }
    StepRecord {
        step,
        step_size: 0.1 / (1.0 + step as f32),
        optimizer_scale: 0.7,
        blocks: BLOCKS,
        samples: (0..BATCH as u64).map(|n| id((step * 7 + n) % SAMPLES)).collect(),
        noise_levels,
        gates: draws(2, step, BATCH),
        route: draws(3, step, BATCH * BLOCKS),
        flow: draws(4, step, BATCH * BLOCKS),
        sq_norm,
        sketch: draws(5, step, BATCH * BLOCKS * K),
    }
}

/// A ledger of `steps` steps, committed every `each`, with a checkpoint.
pub fn written(steps: u64, each: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::create(dir.path(), info()).unwrap();
    for step in 0..steps {
        ledger.append(&record(step)).unwrap();
        if (step + 1) % each == 0 {
            let folder = ledger.checkpoint_dir().unwrap();
            std::fs::write(folder.join("weights"), format!("after {step}")).unwrap();
            ledger.commit().unwrap();
        }
    }
    dir
}

/// Samples of [`guarded`]; the last [`COPIES`] of them are near-duplicates.
pub const WATCHED: u64 = 40;
pub const COPIES: u64 = 8;

/// What describes a guarded run.
pub fn guarded_info() -> RunInfo {
    let mut info = info();
    info.samples = (0..WATCHED)
        .map(|n| SampleInfo {
            id: id(n),
            category: category(id(n)).into(),
            content_hash: *blake3::hash(&n.to_le_bytes()).as_bytes(),
        })
        .collect();
    let singles = (WATCHED - COPIES) as usize;
    let fingerprint = |n: usize| {
        let mut fingerprint = vec![0.0; singles + 1];
        fingerprint[n.min(singles)] = 1.0;
        // Alike, not equal.
        fingerprint[0] += 0.01 * n.saturating_sub(singles) as f32;
        fingerprint
    };
    info.fingerprints = (0..WATCHED as usize).flat_map(fingerprint).collect();
    let config = GuardConfig { noise_edges: vec![0.3], ..GuardConfig::default() };
    config.record_in(&mut info).unwrap();
    info
}

/// A ledger of `steps` steps of `batches` batches each under a guard, and that guard.
pub fn guarded(steps: u64, batches: u64) -> (tempfile::TempDir, Guard) {
    const EACH: u64 = 10;
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::create(dir.path(), guarded_info()).unwrap();
    let mut guard = Guard::of_run(ledger.info()).unwrap().unwrap();
    for step in 0..steps {
        for batch in 0..batches {
            let first = (step * batches + batch) * EACH;
            let samples: Vec<u64> = (0..EACH).map(|n| id((first + n) * 7 % WATCHED)).collect();
            let gates = guard.gates(&samples);
            let count = samples.len();
            let record = StepRecord {
                samples,
                gates,
                noise_levels: draws(6, step, count).iter().map(|it| it.abs()).collect(),
                route: vec![1.0; count * BLOCKS],
                flow: vec![1.0; count * BLOCKS],
                sq_norm: draws(7, step, count * BLOCKS).iter().map(|it| 1.0 + it * it).collect(),
                sketch: draws(8, step, count * BLOCKS * K),
                ..record(step)
            };
            guard.observe(&record).unwrap();
            ledger.append(&record).unwrap();
        }
        if step % 4 == 3 {
            ledger.commit().unwrap();
        }
    }
    ledger.commit().unwrap();
    (dir, guard)
}

/// A signer's: the seed is seven, 32 times.
pub const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH
-----END PRIVATE KEY-----
";

/// A signer's public half, PEM.
pub fn public(key: &[u8; 32]) -> String {
    use ed25519_dalek::pkcs8::EncodePublicKey;
    let key = ed25519_dalek::SigningKey::from_bytes(key).verifying_key();
    key.to_public_key_pem(Default::default()).unwrap()
}
