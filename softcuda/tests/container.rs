//! Containers as nvcc writes them, and damaged ones. How `tests/data` was made is said there.

use softcuda::container::{ContainerError, extent, ptx};

fn data(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn target(text: &str) -> &str {
    let line = text.lines().find(|line| line.starts_with(".target")).expect("a target");
    line.trim_start_matches(".target ").trim()
}

#[test]
fn every_compression_gives_the_same_text() {
    let plain = ptx(&data("none.fatbin"), 90).unwrap();
    assert!(plain.contains(".entry add("), "{plain}");
    for mode in ["speed", "balance", "size"] {
        let text = ptx(&data(&format!("{mode}.fatbin")), 90).unwrap();
        assert_eq!(text.trim_end(), plain.trim_end(), "{mode}");
    }
    assert_eq!(ptx(&data("host.o"), 90).unwrap().trim_end(), plain.trim_end());
}

#[test]
fn the_highest_architecture_that_runs_is_taken() {
    for (name, arch, expected) in [
        ("none.fatbin", 80, "sm_80"),
        ("none.fatbin", 90, "sm_90"),
        ("none.fatbin", 100, "sm_90"),
        ("special.fatbin", 90, "sm_90a"),
        ("special.fatbin", 80, "sm_80"),
        ("special.fatbin", 100, "sm_80"),
        ("lines.cubin", 90, "sm_90"),
    ] {
        let text = ptx(&data(name), arch).unwrap();
        assert_eq!(target(&text), expected, "{name} on {arch}");
    }
}

#[test]
fn machine_code_alone_is_named() {
    for name in ["machine.fatbin", "machine.cubin"] {
        let error = ptx(&data(name), 90).unwrap_err();
        assert!(matches!(error, ContainerError::NoCode { arch: 90, .. }), "{name}: {error}");
        assert!(error.to_string().contains("machine code for sm_90"), "{name}: {error}");
    }
    let error = ptx(&data("none.fatbin"), 75).unwrap_err().to_string();
    assert!(error.contains("PTX for sm_80"), "{error}");
}

#[test]
fn plain_text_ends_with_its_zero_byte() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n";
    assert_eq!(ptx(format!("{text}\0garbage").as_bytes(), 90).unwrap(), text);
    assert!(ptx(b"", 90).is_err());
    assert!(ptx(b"hello", 90).is_err());
}

#[test]
fn the_extent_is_that_of_the_file() {
    for name in ["none.fatbin", "size.fatbin", "machine.fatbin", "lines.cubin", "machine.cubin"] {
        let image = data(name);
        let head = image[..64].try_into().unwrap();
        assert_eq!(extent(head), Some(image.len() as u64), "{name}");
    }
    assert_eq!(extent(b".version 8.0 .target sm_80 .address_size 64 // text ends with 0\n"), None);
}

#[test]
fn truncated_and_damaged_files_are_refused_or_harmless() {
    for name in ["none.fatbin", "speed.fatbin", "size.fatbin", "lines.cubin", "host.o"] {
        let image = data(name);
        for length in (0..image.len()).step_by(7) {
            let _ = ptx(&image[..length], 90);
        }
        for at in 0..image.len().min(2048) {
            for byte in [0, 0x7f, 0xff] {
                let mut damaged = image.clone();
                damaged[at] = byte;
                let _ = ptx(&damaged, 90);
            }
        }
        assert!(ptx(&image[..40], 90).is_err(), "{name}");
    }
}
