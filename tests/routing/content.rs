//! The policy's content: its hash and its file form.

use gradroute::routing::{Block, DepthProfile, OwnedRegion, Policy, SwitchRule, Weights};

use super::{EVERYWHERE, UP};

#[test]
fn the_hash_is_of_the_content() {
    let hash = |text: &str| Policy::from_toml(text).unwrap().hash().to_string();
    // Pinned: a ledger written today must be recognised by later versions.
    assert_eq!(
        hash(EVERYWHERE),
        "bc4e353c11a6f5bfeff5911e50c15f1d63fe8664b788bec15abfdfbe230e2b1e"
    );
    assert_eq!(hash(UP), "a9b7f0cf1f6352de707b8e03d5b8592791b56dd9f7e4c717627357cf1a6bfb69");

    let base = r#"
        [[block]]
        name = "a"
        layers = "a.*"
        [[region]]
        name = "r"
        owner = "s"
        switch = { public_off = 0.5 }
        parts = [{ layers = "a.b", outputs = "..16" }]
        [[profile]]
        category = "s"
        route = 0.5
        blocks = { a = { route = 0.1, flow = 0.25 } }
        regions = { r = { route = 2, flow = 4 } }
        [[profile]]
        category = "t"
    "#;
    let same = r#"
        # Keys and profiles in another order, ranges and numbers spelt otherwise.
        profile = [
            { category = "t" },
            { regions.r = { flow = 4.0, route = 2.0 }, blocks.a.flow = 0.25, blocks.a.route = 1e-1,
              route = 0.5, category = "s" },
        ]
        region = [
            { switch.public_off = 0.5, owner = "s", name = "r",
              parts = [{ outputs = "0..16", layers = "a.b" }] },
        ]
        block = [{ layers = "a.*", name = "a" }]
    "#;
    assert_eq!(hash(base), hash(same));

    let mut seen = vec![hash(base)];
    for (from, to) in [
        ("route = 0.5", "route = 0.25"),
        ("route = 0.5", ""),
        ("route = 0.5", "flow = 0.5"),
        ("route = 0.1,", "route = 0.10000001,"),
        ("route = 0.1,", "route = -0.1,"),
        ("flow = 0.25", "flow = 0.125"),
        ("route = 2", "route = 1"),
        ("flow = 4", "flow = 5"),
        ("public_off = 0.5", "public_off = 0.25"),
        ("..16", "..17"),
        ("outputs", "inputs"),
        ("a.b", "a.c"),
        ("a.*", "a*"),
        ("owner = \"s\"", "owner = \"t\""),
        ("category = \"t\"", "category = \"u\""),
    ] {
        assert!(base.contains(from));
        seen.push(hash(&base.replacen(from, to, 1)));
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "two different policies have one hash");
}

#[test]
fn a_policy_survives_its_file_form() {
    let in_code = Policy::new(
        vec![Block::new("a b", "{a,b}.*").unwrap()],
        vec![
            OwnedRegion::new("r", "s/t")
                .unwrap()
                .outputs("a", "-16.., 3")
                .unwrap()
                .inputs("b", "owner")
                .unwrap()
                .switch(SwitchRule::PublicOff(0.3)),
            OwnedRegion::new("strict", "/")
                .unwrap()
                .inputs("c", "0..2")
                .unwrap()
                .switch(SwitchRule::Strict),
        ],
        vec![
            DepthProfile::new("/").unwrap(),
            DepthProfile::new("s")
                .unwrap()
                .all_blocks(Weights::both(0.1, -1.0 / 3.0))
                .block("a b", Weights::route(f32::MIN_POSITIVE))
                .region("r", Weights::flow(1e30)),
        ],
    )
    .unwrap();
    let from_files = [EVERYWHERE, UP].map(|text| Policy::from_toml(text).unwrap());
    for policy in [in_code, from_files[0].clone(), from_files[1].clone()] {
        let text = policy.to_toml();
        let again = Policy::from_toml(&text).unwrap_or_else(|mistake| panic!("{mistake}\n{text}"));
        assert_eq!(again, policy, "{text}");
        assert_eq!(again.hash(), policy.hash());
    }
    // No region at all is a policy too.
    let plain = Policy::from_toml("block = [{ name = 'a', layers = '*' }]").unwrap();
    assert_eq!(Policy::from_toml(&plain.to_toml()).unwrap(), plain);
}
