//! `xctl inspect`: what an object holds, and what its CO-RE relocations come to on the kernel that a BTF describes.
//!
//! Needs no privilege and asks the kernel nothing but its BTF file.

mod json;
mod judge;
mod modules;
mod plain;
mod screen;
mod summary;
mod text;
mod verdict;
mod view;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use self::json::Json;
use self::judge::Judge;
use self::summary::Summary;
use self::text::Text;
use self::verdict::Verdict;
use self::view::{Shown, View};
use super::{btf_path, read_btf};
use crate::error::Exit;
use crate::object::facts::{Facts, hex};
use crate::object::known::Known;
use crate::object::relo::{Relocations, type_name};
use crate::object::{Btf, BtfExt, ObjectFile, Refused, compare_parsers};

/// Version of the JSON document.
const SCHEMA: u32 = 1;

/// The running kernel's types, and its modules'.
const MODULES: &str = "/sys/kernel/btf";

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// The object; the one inside the binary if there is none.
    pub object: Option<PathBuf>,
    /// BTF to resolve against, instead of the running kernel's: raw, or an ELF file with a `.BTF` section.
    pub btf: Option<PathBuf>,
    /// One JSON document instead of text.
    pub json: bool,
}

/// The BTF that relocations were resolved against.
#[derive(Debug, Serialize)]
struct Target {
    path: String,
    types: usize,
    bytes: usize,
}

/// What is known before the first relocation.
#[derive(Debug, Default, Serialize)]
struct Head<'a> {
    schema: u32,
    object: String,
    sha256: String,
    bytes: usize,
    #[serde(flatten)]
    facts: Facts<'a>,
    btf: Option<Target>,
}

/// Writes what the object holds to `out`.
///
/// # Errors
/// Files that cannot be read; with [`Exit::Object`], an object that is refused, or that would not run on the kernel that
/// the BTF describes.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let (bytes, shown) = super::object(args.object.as_deref())?;
    let modules = args.btf.is_none().then_some(Path::new(MODULES));
    report(&bytes, &shown, || target(args), modules, args.json, out)
}

/// Like [`run`], for the bytes of an object. `shown` is the object's name in messages. `target` returns the types to
/// resolve against and their path; it is called only after the object was parsed. `modules` is the folder with the BTF
/// of the kernel's modules.
///
/// # Errors
/// As [`run`].
pub fn report(
    bytes: &[u8],
    shown: &str,
    target: impl FnOnce() -> Result<Option<(Btf, String)>>,
    modules: Option<&Path>,
    json: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let refused = |error: anyhow::Error| error.context(shown.to_owned()).context(Exit::Object);
    let mut writer: Box<dyn Report> = if json { Box::new(Json::new(out)) } else { Box::new(Text::new(out)) };
    let sha256 = hex(&hmac_sha256::Hash::hash(bytes));
    let mut head = Head { schema: SCHEMA, object: shown.to_owned(), sha256, bytes: bytes.len(), ..Head::default() };
    let mut verdict = Verdict::default();
    let object = match read_object(bytes, &mut verdict) {
        Ok(object) => object,
        Err(why) => {
            verdict.refused_for(why.to_string());
            writer.head(&head)?;
            writer.end(&head, &verdict)?;
            return Err(refused(verdict.refusal()));
        }
    };
    let types = verdict.or_refused(object.btf.map(read_types).transpose());
    let (target, target_facts) = target()?
        .map(|(btf, path)| {
            let facts = Target { path, types: btf.len(), bytes: btf.bytes().len() };
            (btf, facts)
        })
        .unzip();
    let nothing = Btf::nothing();
    let local = types.as_ref().unwrap_or(&nothing);
    let ext = verdict.or_refused(types.as_ref().map_or(Ok(BtfExt::default()), |types| read_ext(&object, types)));
    let code = Relocations::new(bytes, &object, local, &ext, target.as_ref());
    let mut code = code.map_err(|error| refused(error.into()))?;

    let known = target.as_ref().map(Known::of).unwrap_or_default();
    let view = View::new(local, target.as_ref(), &ext, !object.is_little_endian);
    let judge = Judge {
        bytes,
        object: &object,
        types: types.as_ref(),
        ext: &ext,
        target: target.as_ref(),
        known,
        modules,
        view,
    };
    let (facts, all_read) = judge.facts(&code, &mut verdict);
    (head.facts, head.btf) = (facts, target_facts);
    writer.head(&head)?;
    judge.parts(&head.facts, &code, all_read, &mut verdict);
    let poisoned = judge.relocate(&head.facts, &mut code, writer.as_mut(), &mut verdict)?;
    if let Some(why) = verdict.ended.clone() {
        writer.end(&head, &verdict)?;
        return Err(refused(anyhow!(why)));
    }
    if all_read {
        judge.reached(&head.facts, &code, &poisoned, &mut verdict);
    }
    writer.end(&head, &verdict)?;
    if verdict.is_refused {
        return Err(refused(verdict.refusal()));
    }
    if verdict.runs == Some(false) {
        let path = head.btf.as_ref().map_or("", |target| &target.path);
        let problems = verdict.refusal();
        return Err(anyhow!("{shown} would not run with the types of {path}: {problems}").context(Exit::Object));
    }
    Ok(())
}

/// The object, if two parsers read it alike. Its refused parts go into the verdict.
fn read_object<'a>(bytes: &'a [u8], verdict: &mut Verdict) -> Result<ObjectFile<'a>, Refused> {
    let (object, refusals) = ObjectFile::read(bytes)?;
    compare_parsers(bytes, &object)?;
    refusals.iter().for_each(|why| verdict.refused_for(why.to_string()));
    Ok(object)
}

/// The object's own types.
fn read_types(section: &[u8]) -> Result<Btf, String> {
    let btf = Btf::parse(section).map_err(|why| format!("its types: {why}"))?;
    match btf.cycle() {
        Some(id) => Err(format!("its types: {} {id} contains itself", type_name(&btf, id))),
        None => Ok(btf),
    }
}

/// The object's source lines and relocations.
fn read_ext<'t>(object: &ObjectFile<'_>, types: &'t Btf) -> Result<BtfExt<'t>, String> {
    let Some(section) = object.btf_ext else { return Ok(BtfExt::default()) };
    let ext = BtfExt::parse(section, types).map_err(|why| why.to_string())?;
    ext.check_places(object).map_err(|why| why.to_string())?;
    Ok(ext)
}

/// The types to resolve against. Without an explicit choice, it is no failure that this host has none.
fn target(args: &Args) -> Result<Option<(Btf, String)>> {
    let path = btf_path(args.btf.as_deref());
    let bytes = match read_btf(&path) {
        Ok(bytes) => bytes,
        Err(_) if args.btf.is_none() && !path.exists() => return Ok(None),
        Err(error) => bail!(anyhow!(error).context("reading BTF")),
    };
    let btf = Btf::from_cow(bytes).with_context(|| path.display().to_string())?;
    Ok(Some((btf, path.display().to_string())))
}

/// A form of output.
trait Report {
    fn head(&mut self, head: &Head<'_>) -> Result<()>;
    fn relocation(&mut self, shown: &Shown<'_>) -> Result<()>;
    fn end(&mut self, head: &Head<'_>, verdict: &Verdict) -> Result<()>;
}
