//! The types of real kernels, and our own object on each of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use xctl::kernel::source::{self, KERNEL_BTF};
use xctl::model::embedded;
use xctl::object::difference::first_difference;
use xctl::object::facts::Facts;
use xctl::object::relo::{Outcome, Relocations};
use xctl::object::steps::MOST_STEPS;
use xctl::object::{Btf, BtfExt, ObjectFile};

use crate::compared::{Ours, compare, relocate, searched};
use crate::objects::{elf, have_clang};
use crate::verdict::inspect;
use crate::{Scratch, tell};

/// Kernels that must be there to compare with: `make test` fetches them and says so. Else those that are.
pub const KERNELS: &str = "XCTL_KERNELS";

/// The BTF of the running kernel and of the kernels that tests/vm has fetched: name, file, types.
pub fn kernels() -> &'static [(String, PathBuf, Btf)] {
    static ALL: std::sync::OnceLock<Vec<(String, PathBuf, Btf)>> = std::sync::OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = Vec::new();
        if let Ok(bytes) = source::read_btf(Path::new(KERNEL_BTF)) {
            all.push(("running".to_owned(), PathBuf::from(KERNEL_BTF), Btf::from_vec(bytes).unwrap()));
        }
        let cache = env::var_os("XCTL_CACHE").map(PathBuf::from).or_else(|| {
            let home = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            Some(home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?.join("xctl"))
        });
        let folders = cache.and_then(|cache| fs::read_dir(cache.join("kernels")).ok()).into_iter().flatten().flatten();
        for folder in folders {
            let name = folder.file_name().to_string_lossy().into_owned();
            let path = folder.path().join("vmlinux.btf");
            if let Ok(bytes) = fs::read(&path) {
                all.push((name, path, Btf::from_vec(bytes).unwrap()));
            }
        }
        all.sort_by(|one, two| one.0.cmp(&two.0));
        let names: Vec<&str> = all.iter().map(|(name, ..)| name.as_str()).collect();
        match env::var(KERNELS) {
            Ok(wanted) => {
                let missing: Vec<&str> = wanted.split_whitespace().filter(|name| !names.contains(name)).collect();
                assert!(missing.is_empty(), "no types of kernels {missing:?}: tests/vm/fetch gets them");
            }
            Err(_) => tell(&format!("compared with kernels {}; make test fetches those it wants", names.join(", "))),
        }
        all
    })
}

/// Our object as it is built for a machine.
pub fn our_object(machine: &str) -> Vec<u8> {
    let scratch = Scratch::new(machine);
    let object = scratch.0.join("xctl.bpf.o");
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).arg("bpf");
    make.arg(format!("ARCH={machine}")).arg(format!("BPF_OBJECT={}", object.display()));
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    assert!(make.status().unwrap().success(), "make bpf ARCH={machine}");
    fs::read(object).unwrap()
}

#[test]
fn our_object_comes_out_as_by_libbpf_on_every_kernel() {
    let (own, arm64) = (embedded::object().unwrap(), have_clang().then(|| our_object("aarch64")));
    for (name, path, btf) in kernels() {
        let is_arm64 = name.ends_with("-arm64") || (name == "running" && cfg!(target_arch = "aarch64"));
        let object = arm64.as_ref().filter(|_| is_arm64).unwrap_or(&own);
        let compared = compare(&format!("our object, {name}"), object, btf, path);
        println!("{name}: {compared} relocations as by libbpf");
        let part = searched(object, btf).unwrap();
        assert!(part.len() * 40 < btf.bytes().len(), "{name}: {} bytes of {}", part.len(), btf.bytes().len());
        let (all, _) = relocate(object, btf, |_, _| true);
        assert!(all.len() > 100);
        assert!(!all.iter().any(|ours| matches!(ours.outcome, Outcome::Refused(_))));
    }
}

/// The bound on work is far above what an object takes that was not made to be costly.
#[test]
fn our_object_takes_a_tenth_of_the_steps_at_most() {
    let bytes = embedded::object().unwrap();
    let object = ObjectFile::parse(&bytes).unwrap();
    let types = Btf::parse(object.btf.unwrap()).unwrap();
    let ext = BtfExt::parse(object.btf_ext.unwrap(), &types).unwrap();
    for (name, _, btf) in kernels() {
        let mut code = Relocations::new(&bytes, &object, &types, &ext, Some(btf)).unwrap();
        Facts::of(&bytes, &object, Some(&types), &code).unwrap();
        code.run::<(), _>(|_| true, |_| Ok(())).unwrap();
        let taken = code.steps().taken();
        assert!(taken > 1000 && taken <= MOST_STEPS / 10, "{name}: {taken}");
    }
}

#[test]
fn a_kernel_is_told_from_every_other_by_what_our_object_asks() {
    let object = embedded::object().unwrap();
    for (name, _, own) in kernels() {
        let (all, _) = relocate(&object, own, |_, _| true);
        for (other, _, given) in kernels().iter().filter(|(_, _, other)| other.bytes() != own.bytes()) {
            let (others, _) = relocate(&object, given, |_, _| true);
            let differs = |(one, other): &(&Ours, &Ours)| one.value != other.value;
            let (ours, theirs) = all.iter().zip(&others).find(differs).unwrap();
            let told = first_difference(&object, given, own).unwrap().unwrap();
            let values = [ours.value, theirs.value].map(|value| value.unwrap().to_string());
            let said = format!(" is {} with the given BTF, {} with the kernel's", values[1], values[0]);
            assert!(told.ends_with(&said), "{name}, given that of {other}: {told}, and it is {ours:?}, {theirs:?}");
        }
    }
}

/// A module's types continue those of its kernel, and are named as such.
#[test]
fn a_modules_types_are_told_from_a_kernels() {
    let scratch = Scratch::new("module");
    let own = scratch.file("own.o", &embedded::object().unwrap());
    let cache = kernels().iter().filter_map(|(_, path, _)| path.parent());
    let modules = cache.flat_map(|folder| fs::read_dir(folder.join("modules")).into_iter().flatten().flatten());
    let (mut told, words) = (0, "the types of a kernel module, which continue those of its kernel");
    for module in modules.map(|file| file.path()).filter(|path| path.extension().is_some_and(|ending| ending == "ko")) {
        let Ok(bytes) = source::read_btf(&module) else { continue };
        let (_, error) = inspect(&own, &module, true);
        let error = format!("{:#}", error.unwrap());
        assert!(error.contains(words), "{}: {error}", module.display());
        assert!(Btf::from_vec(bytes).is_err());
        told += 1;
    }
    if told == 0 {
        tell("no module of a kernel was looked at: none is there");
    }
}

#[test]
fn of_a_long_kernel_image_only_its_types_are_read() {
    let scratch = Scratch::new("image");
    let types = Btf::nothing();
    let types: &[u8] = kernels().first().map_or(types.bytes(), |(.., btf)| btf.bytes());
    let image = scratch.file("vmlinux", &elf(&[(".text", 1, 6, 0, 0, b"code"), (".BTF", 1, 0, 0, 0, types)]));
    // Debug information, as far as its length goes; it takes no room on the disk.
    fs::File::options().append(true).open(&image).unwrap().set_len(8 * source::MAX_FILE).unwrap();
    assert!(source::read_btf(&image).unwrap() == types);
    let other = scratch.file("other", &elf(&[(".text", 1, 6, 0, 0, b"code")]));
    assert!(source::read_btf(&other).unwrap_err().to_string().contains("has no .BTF section"));
}
