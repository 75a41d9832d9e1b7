//! The report of `xctl inspect`, as a person or a program reads it: the place of each part.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use serde_json::{Value, json};
use xctl::object::ObjectFile;

/// The exit code for an object that would not run.
const OBJECT: i32 = 4;

/// The number of lines that a terminal shows at once.
const SCREEN: usize = 40;

/// A folder that is removed with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("xctl-report-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn clang() -> Command {
    Command::new(env::var("CLANG").unwrap_or_else(|_| "clang".to_owned()))
}

fn have_clang() -> bool {
    let have = clang().arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !have {
        println!("skipped: no clang");
    }
    have
}

/// Compiles a file of tests/objects/outside with one macro defined.
fn compile(source: &str, option: &str, scratch: &Scratch) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/objects/outside").join(source);
    let out = scratch.0.join(format!("{option}.o"));
    let mut compiler = clang();
    compiler.args(["--target=bpf", "-g", "-O2", "-c", "-w"]).arg(format!("-D{option}")).arg(source).arg("-o").arg(&out);
    assert!(compiler.status().unwrap().success(), "{option}");
    out
}

/// The binary under test: the release binary that XCTL names, or else the one that cargo built along with the tests.
fn binary() -> PathBuf {
    std::env::var_os("XCTL").unwrap_or_else(|| env!("CARGO_BIN_EXE_xctl").into()).into()
}

/// The exit code, the text, and the JSON document.
fn inspect(object: &Path, btf: &Path) -> (i32, String, Value) {
    let run = |form: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("inspect").args(form).arg(object).arg("--btf").arg(btf).output().unwrap()
    };
    let (text, document) = (run(&[]), run(&["--json"]));
    assert_eq!(text.status, document.status);
    let document = serde_json::from_slice(&document.stdout).unwrap();
    (text.status.code().unwrap(), String::from_utf8(text.stdout).unwrap(), document)
}

/// The lines before the list of all problems, or before the list of programs.
fn first_screen(text: &str) -> &str {
    let ends = ["\nall problems (", "\nprograms ("].map(|title| text.find(title).unwrap_or(text.len()));
    &text[..ends[0].min(ends[1])]
}

#[test]
fn the_verdict_is_on_the_first_screen_and_sections_come_last() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("screen");
    let target = compile("report.c", "TARGET", &scratch);
    let (code, text, document) = inspect(&compile("report.c", "FEW", &scratch), &target);
    assert_eq!(code, OBJECT);
    assert!(
        text.starts_with("verdict      it would not run there\nnot judged   the verifier's other rules, "),
        "{text}"
    );
    let screen = first_screen(&text);
    for line in [
        "problems (2)",
        "  program fails reaches instruction 0: one->a: struct one has no member a",
        "  program fails_by_call reaches instruction 0 of takes: one->a: struct one has no member a",
        "programs by type and hook (6)",
        "      4  socket, type socket_filter, 1 not loaded by default, 2 would fail",
        "      1  xdp, type xdp",
        "hooks that this BTF does not have (1)",
        "  fentry xctl_no_such_function: program nowhere, not loaded by default",
    ] {
        assert!(screen.lines().any(|one| one == line), "no line {line:?} in\n{screen}");
    }
    let order =
        ["\nprograms (", "\nmaps (", "\nCO-RE relocations\n", "\nsections ("].map(|title| text.find(title).unwrap());
    assert!(order.is_sorted(), "{order:?}");

    let summary = &document["summary"];
    assert_eq!(summary["runs"], document["runs"]);
    assert!(summary["not_judged"].as_array().unwrap().len() > 1, "{summary}");
    let count = |kind: &str, hook: &str, programs: u32, not_loaded: u32, failing: u32| json!({"type": kind, "hook": hook, "programs": programs, "not_loaded": not_loaded, "failing": failing});
    let hooks = summary["hooks"].as_array().unwrap();
    assert_eq!(hooks.len(), 3, "{summary}");
    assert_eq!(hooks[0], count("socket_filter", "socket", 4, 1, 2));
    assert!(
        hooks.contains(&count("tracing", "fentry", 1, 1, 0)) && hooks.contains(&count("xdp", "xdp", 1, 0, 0)),
        "{summary}"
    );
    let failing = summary["failing"].as_array().unwrap().iter().zip(document["problems"].as_array().unwrap());
    for ((failing, problem), name) in failing.zip(["fails", "fails_by_call"]) {
        assert_eq!(*failing, json!({"program": name, "section": "socket", "why": problem}));
    }
    let absent = json!({"program": "nowhere", "hook": "fentry", "target": "xctl_no_such_function", "autoload": false});
    assert_eq!(summary["absent"], json!([absent]));
}

#[test]
fn the_first_screen_stays_short_for_every_object() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("many");
    let (object, target) = (compile("report.c", "MANY", &scratch), compile("report.c", "TARGET", &scratch));
    let (code, text, document) = inspect(&object, &target);
    assert_eq!(code, OBJECT);
    let screen = first_screen(&text);
    assert!(screen.lines().count() <= SCREEN, "{screen}");
    for line in ["problems (66)", "  and 59 more, all of them below", "hooks that this BTF does not have (65)"] {
        assert!(screen.lines().any(|one| one == line), "no line {line:?} in\n{screen}");
    }
    let problems = document["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 66);
    assert!(problems.iter().all(|problem| text.contains(problem.as_str().unwrap())), "{text}");
    let summary = &document["summary"];
    let lengths = ["failing", "absent", "hooks"].map(|what| summary[what].as_array().unwrap().len());
    assert_eq!(lengths, [66, 65, 67]);
}

/// The names in a list of the document.
fn names<'d>(document: &'d Value, list: &str) -> Vec<&'d str> {
    document[list].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

/// Checks the report on an object that libbpf does not open: document and text contain `problem`. Returns the document.
fn refused(object: &Path, btf: &Path, problem: &str) -> Value {
    let (code, text, document) = inspect(object, btf);
    let no = json!(false);
    assert_eq!((code, &document["runs"], &document["summary"]["runs"]), (OBJECT, &no, &no), "{problem}");
    let first = document["problems"][0].as_str().unwrap();
    assert!(first.contains(problem), "no {problem:?} in {first}");
    assert!(text.starts_with("verdict      it would not run there\n") && first_screen(&text).contains(first), "{text}");
    document
}

#[test]
fn a_refused_object_is_shown_up_to_the_refused_part() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("refused");
    let target = compile("report.c", "TARGET", &scratch);
    let all = ["by_choice", "fails", "fails_by_call", "loads", "nowhere", "passes"];
    let has_all = |document: &Value| {
        let mut found = names(document, "programs");
        found.sort_unstable();
        assert_eq!(found, all);
    };
    let hidden = compile("report.c", "STATIC", &scratch);
    let document = refused(&hidden, &target, "program hidden in section socket is static");
    has_all(&document);
    assert_eq!(document["maps"][0]["type"], "array");
    assert_eq!((&document["relocations_total"], &document["poisoned"]), (&json!(3), &json!(3)));

    for (option, problem, maps) in [
        ("pinned_somehow", "map two: its pinning is 2", &["one"][..]),
        ("not_a_program", "map two, byte 32: function is no program", &["one", "two"]),
        ("is_static", "map two is static", &["one"]),
    ] {
        let document = refused(&compile("maps.c", option, &scratch), &target, problem);
        let mut found = names(&document, "maps");
        found.sort_unstable();
        assert_eq!(found, maps, "{option}");
        assert!(names(&document, "programs").contains(&"program"), "{option}");
    }

    // A damaged section: its first bytes are the magic number.
    let bytes = fs::read(compile("report.c", "FEW", &scratch)).unwrap();
    for (section, problem) in [(".BTF", "its types: "), (".BTF.ext", ".BTF.ext")] {
        let object = ObjectFile::parse(&bytes).unwrap();
        let place = object.sections.iter().find(|one| one.name == section).unwrap().offset as usize;
        let mut damaged = bytes.clone();
        damaged[place..place + 2].copy_from_slice(b"xx");
        let file = scratch.0.join("damaged.o");
        fs::write(&file, damaged).unwrap();
        let document = refused(&file, &target, problem);
        has_all(&document);
        assert_eq!(document["relocations"], json!([]));
        assert_eq!(document["problems"].as_array().unwrap().len(), 1, "{}", document["problems"]);
    }

    let text = scratch.0.join("text");
    fs::write(&text, "This is no object.\n").unwrap();
    let document = refused(&text, &target, "not an ELF file");
    let nothing = [&document["endian"], &document["btf"], &document["license"]];
    assert_eq!((document["bytes"].clone(), nothing), (json!(19), [&Value::Null; 3]));
    assert!(names(&document, "programs").is_empty() && names(&document, "sections").is_empty(), "{document}");
}
