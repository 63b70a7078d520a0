//! The build script's decisions: which compiler, which architectures, what the assembler said.

#[path = "../build/cache.rs"]
mod cache;
#[path = "../build/compile.rs"]
mod compile;
#[path = "../build/toolkit.rs"]
mod toolkit;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use toolkit::{Compiler, Decision, architectures, decide, find, find_or};

/// Searches with these environment variables and none else, and a toolkit installed in `root/installed`.
fn search(variables: &[(&str, &Path)], root: &Path) -> Compiler {
    let variable = |name: &str| {
        let found = variables.iter().find(|(given, _)| *given == name);
        found.map(|(_, value)| OsString::from(value))
    };
    find_or(&variable, root, &root.join("installed"))
}

/// Puts an empty nvcc into a folder and returns its path.
fn plant(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let program = folder.join(format!("nvcc{}", std::env::consts::EXE_SUFFIX));
    fs::write(&program, "").unwrap();
    program
}

#[test]
fn compiler_is_searched_in_order() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let packaged = "lib/python3.11/site-packages/nvidia/cu13/bin";
    assert_eq!(search(&[], root), Compiler::Missing);

    let installed = plant(&root.join("installed/bin"));
    assert_eq!(search(&[], root), Compiler::Found(installed));
    let tools = plant(&root.join(".tools/cuda").join(packaged));
    assert_eq!(search(&[], root), Compiler::Found(tools.clone()));
    let environment = root.join("environment");
    let venv = plant(&environment.join(packaged));
    let mut variables = vec![("VIRTUAL_ENV", environment.as_path())];
    assert_eq!(search(&variables, root), Compiler::Found(venv));
    let folder = root.join("path");
    let path = plant(&folder);
    variables.push(("PATH", &folder));
    assert_eq!(search(&variables, root), Compiler::Found(path));
    let toolkit = root.join("toolkit");
    let home = plant(&toolkit.join("bin"));
    variables.push(("CUDA_PATH", &toolkit));
    assert_eq!(search(&variables, root), Compiler::Found(home.clone()));
    variables.push(("CUDA_HOME", root));
    assert_eq!(search(&variables, root), Compiler::Found(home), "CUDA_HOME has no nvcc");
    let named = Path::new("/somewhere/nvcc-13");
    variables.push(("NVCC", named));
    assert_eq!(search(&variables, root), Compiler::Found(named.into()));
    variables.pop();
    variables.push(("NVCC", Path::new("OFF")));
    assert_eq!(search(&variables, root), Compiler::Refused);
    assert_eq!(search(&[("NVCC", Path::new(""))], root), Compiler::Found(tools));
}

#[test]
fn kernels_are_left_out_unless_they_are_required() {
    let nvcc = || Compiler::Found("nvcc".into());
    for (required, documenting) in [(false, false), (false, true), (true, false), (true, true)] {
        assert_eq!(decide(nvcc(), required, documenting), Ok(Decision::Build("nvcc".into())));
    }
    assert!(matches!(decide(Compiler::Missing, false, false), Ok(Decision::Warn(_))));
    assert_eq!(decide(Compiler::Refused, false, false), Ok(Decision::Silence));
    for found in [|| Compiler::Missing, || Compiler::Refused] {
        let error = decide(found(), true, false).unwrap_err();
        assert!(error.contains("require-kernels"), "{error}");
        // docs.rs turns all features on.
        assert_eq!(decide(found(), true, true), Ok(Decision::Silence));
        assert_eq!(decide(found(), false, true), Ok(Decision::Silence));
    }
}

#[test]
fn architectures_are_asked_for_or_known() {
    let known = "sm_75\nsm_80\nsm_86\nsm_90\n";
    assert_eq!(architectures(None, known), Ok(vec![80, 86, 90]));
    assert_eq!(architectures(Some("90, 80,90"), known), Ok(vec![80, 90]));
    for wrong in ["", "sm_80", "80,", "75", "-90"] {
        let error = architectures(Some(wrong), known).unwrap_err();
        assert!(error.contains(toolkit::ARCHITECTURES_VARIABLE), "{error}");
    }
    assert!(architectures(None, "sm_52").unwrap_err().contains("knows none"));
}

#[test]
fn the_table_is_of_one_compiler_and_its_ptx_for_the_lowest() {
    let held = |archs: &[u32]| toolkit::held_to_table(toolkit::PINNED, archs);
    assert!(held(&toolkit::ARCHITECTURES) && held(&[80]) && held(&[80, 90]));
    assert!(!held(&[86, 90]) && !held(&[90]));
    assert!(!toolkit::held_to_table("13.0.1", &toolkit::ARCHITECTURES));
}

#[test]
fn machine_code_for_all_and_ptx_for_the_lowest() {
    let path = Path::new;
    let arguments = compile::arguments(path("a.cu"), path("a.bin"), path("include"), &[80, 90]);
    assert!(arguments.contains(&"arch=compute_80,code=[compute_80,sm_80,sm_90]".into()));
    assert!(arguments.ends_with(&["-I", "include", "-o", "a.bin", "a.cu"].map(String::from)));
    assert!(arguments.join(" ").contains("-MD -MF a.d"));
    assert!(!arguments.iter().any(|argument| argument.contains("fast")));
}

#[test]
fn table_names_every_kernel() {
    let table = compile::table(&[80, 90], &["probe".into()]);
    assert!(table.contains("ARCHITECTURES: &[u32] = &[80, 90];"));
    assert!(table.contains(r#"name: "probe", image: include_bytes!("#));
    assert!(table.contains(r#""/probe.fatbin""#));
    assert!(compile::table(&[], &[]).contains("KERNELS: &[Kernel] = &[\n];"));
}

#[test]
fn version_is_the_compilers() {
    let said =
        "Built on Fri_May_08\nCuda compilation tools, release 13.2, V13.2.86\nBuild cuda_13.2";
    assert_eq!(toolkit::version(said), toolkit::PINNED);
    assert_eq!(toolkit::version("clang"), "of unknown version");
}

#[test]
fn only_what_changed_is_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let [source, header, depfile] = ["a b.cu", "h.cuh", "a.d"].map(|name| folder.path().join(name));
    fs::write(&source, "1").unwrap();
    fs::write(&header, "2").unwrap();
    let escaped = source.display().to_string().replace(' ', "\\ ");
    let text = format!("out/a.fatbin : {escaped} \\\n    {}\n", header.display());
    assert_eq!(cache::dependencies(&text), [source.clone(), header.clone()]);
    fs::write(&depfile, text).unwrap();
    let arguments = ["-O3".to_string()];
    let stamp = || cache::stamp("13.2", &arguments, &depfile);
    let first = stamp();
    assert!(first.is_some());
    assert_eq!(stamp(), first);
    assert_ne!(cache::stamp("13.3", &arguments, &depfile), first);
    assert_ne!(cache::stamp("13.2", &[], &depfile), first);
    fs::write(&header, "3").unwrap();
    assert_ne!(stamp(), first);
    fs::remove_file(&header).unwrap();
    assert_eq!(stamp(), None);
}

#[test]
fn what_is_edited_during_a_compile_is_not_taken_for_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let [source, depfile] = ["a.cu", "a.d"].map(|name| folder.path().join(name));
    fs::write(&source, "1").unwrap();
    let start = cache::modified(&source).unwrap();
    assert!(!cache::unchanged(&depfile, start), "no depfile");
    fs::write(&depfile, format!("a.fatbin : {}\n", source.display())).unwrap();
    assert!(cache::unchanged(&depfile, start));
    let file = fs::File::options().append(true).open(&source).unwrap();
    file.set_modified(start + std::time::Duration::from_millis(1)).unwrap();
    assert!(!cache::unchanged(&depfile, start));
    fs::remove_file(&source).unwrap();
    assert!(!cache::unchanged(&depfile, start));
}

#[test]
fn a_compiler_that_fails_is_quoted() {
    let error = compile::run(Path::new("/no/such/nvcc"), &["--version".into()]).unwrap_err();
    assert!(error.contains("cannot start /no/such/nvcc --version"), "{error}");
}

#[test]
fn every_variable_that_decides_is_watched() {
    let asked = std::cell::RefCell::new(Vec::new());
    let variable = |name: &str| {
        asked.borrow_mut().push(name.to_owned());
        None
    };
    find(&variable, Path::new("/no/such/folder"));
    for name in asked.into_inner() {
        assert!(name == "PATH" || toolkit::VARIABLES.contains(&name.as_str()), "{name}");
    }
}
