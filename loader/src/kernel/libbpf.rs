//! libbpf, wrapped once. This module opens, sizes, relocates and loads the object; other modules attach programs and
//! read ([`LoadedObject`]).

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use anyhow::{Context, Result, anyhow};
use libbpf_sys as sys;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::call::By;
use super::calls::Account;
use super::loaded::LoadedObject;
use super::programs::{Common, Prepared, elements, load_all};
use crate::error::Exit;
use crate::object::TypeId;

/// The object's name. libbpf begins the names of the maps that it makes for variables with this name.
const NAME: &CStr = c"xctl";

/// libbpf's messages, verifier logs included.
static MESSAGES: Mutex<Messages> = Mutex::new(Messages { text: Vec::new(), debug: false });

struct Messages {
    text: Vec<u8>,
    debug: bool,
}

fn messages() -> MutexGuard<'static, Messages> {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" {
    /// This function passes the `va_list` on untouched. The `va_list` is an array on x86_64, and a structure too large
    /// for registers on aarch64. The caller passes a pointer in both cases, so this declaration has a pointer.
    fn vasprintf(to: *mut *mut c_char, format: *const c_char, args: *mut sys::__va_list_tag) -> c_int;
}

unsafe extern "C" fn collect(
    level: sys::libbpf_print_level,
    format: *const c_char,
    args: *mut sys::__va_list_tag,
) -> c_int {
    // libbpf reads errno after it has logged.
    let errno = nix::errno::Errno::last_raw();
    let mut messages = messages();
    if level != sys::LIBBPF_DEBUG || messages.debug {
        let mut line: *mut c_char = ptr::null_mut();
        // SAFETY: libbpf passes a printf format and its arguments; vasprintf stores an allocated string on success only.
        if unsafe { vasprintf(&mut line, format, args) } >= 0 {
            // SAFETY: vasprintf succeeded: `line` is a NUL-terminated string, which this function must free.
            unsafe {
                messages.text.extend_from_slice(CStr::from_ptr(line).to_bytes());
                libc::free(line.cast());
            }
        }
    }
    nix::errno::Errno::set_raw(errno);
    0
}

/// Collect libbpf's messages, instead of letting libbpf print them. With `debug`, messages about normal work are
/// collected too.
pub fn collect_messages(debug: bool) {
    messages().debug = debug;
    // SAFETY: `collect` has the type that libbpf asks for and lives as long as the program.
    unsafe { sys::libbpf_set_print(Some(collect)) };
}

/// The messages so far, in libbpf's own words. The collection then starts anew. Verifier logs may hold bytes that are
/// not UTF-8; these bytes are replaced.
pub fn take_messages() -> String {
    String::from_utf8_lossy(&std::mem::take(&mut messages().text)).into_owned()
}

/// Sections of programs that attach to a type of the kernel's own BTF: the beginning of the name, the type of the program,
/// and how it is attached.
const BY_TYPE: [(&CStr, sys::bpf_prog_type, sys::bpf_attach_type); 5] = [
    (c"fentry/", sys::BPF_PROG_TYPE_TRACING, sys::BPF_TRACE_FENTRY),
    (c"fexit/", sys::BPF_PROG_TYPE_TRACING, sys::BPF_TRACE_FEXIT),
    (c"tp_btf/", sys::BPF_PROG_TYPE_TRACING, sys::BPF_TRACE_RAW_TP),
    (c"iter/", sys::BPF_PROG_TYPE_TRACING, sys::BPF_TRACE_ITER),
    (c"lsm/", sys::BPF_PROG_TYPE_LSM, sys::BPF_LSM_MAC),
];

/// The programs that attach to a type, with the number of the type, of the object that is loaded next.
static ATTACH_TYPES: Mutex<Vec<(String, TypeId)>> = Mutex::new(Vec::new());

fn attach_types() -> MutexGuard<'static, Vec<(String, TypeId)>> {
    ATTACH_TYPES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attach_type_of(program: &CStr) -> Option<TypeId> {
    attach_types().iter().find(|(name, _)| name.as_bytes() == program.to_bytes()).map(|(_, id)| *id)
}

/// Let libbpf ask [`attach_to_type`] for the types that programs attach to. libbpf itself would read all types of the
/// kernel as soon as it sees a program of such a type. So the programs have another type until they are loaded.
fn attach_by_type() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (section, program_type, attach_type) in BY_TYPE {
            let options = sys::libbpf_prog_handler_opts {
                sz: size_of::<sys::libbpf_prog_handler_opts>() as _,
                cookie: program_type.into(),
                prog_prepare_load_fn: Some(attach_to_type),
                ..Default::default()
            };
            let until_loaded = sys::BPF_PROG_TYPE_RAW_TRACEPOINT;
            // SAFETY: libbpf copies the name and the options, and the function lives as long as the program. A section that
            // is not registered, for lack of memory, is left to libbpf.
            unsafe { sys::libbpf_register_prog_handler(section.as_ptr(), until_loaded, attach_type, &options) };
        }
    });
}

/// Give a program its type, and the type that it attaches to. libbpf calls this function right before it loads the program.
unsafe extern "C" fn attach_to_type(
    program: *mut sys::bpf_program,
    options: *mut sys::bpf_prog_load_opts,
    program_type: c_long,
) -> c_int {
    // SAFETY: libbpf passes a program of an open object; its name is NUL-terminated.
    let name = unsafe { CStr::from_ptr(sys::bpf_program__name(program)) };
    let Some(id) = attach_type_of(name) else { return -libc::ESRCH };
    // SAFETY: the program is not loaded yet, and libbpf passes the options of its load.
    unsafe {
        (*options).attach_btf_id = id.0;
        sys::bpf_program__set_type(program, program_type as sys::bpf_prog_type)
    }
}

/// An object that libbpf has opened and not yet loaded.
pub struct OpenObject {
    object: Object,
    /// The part of the kernel's types that libbpf reads when it loads.
    _types: Option<File>,
}

/// The types that libbpf relocates an object against, if not all of the running kernel's own.
pub enum Types<'a> {
    /// The types in a file: raw BTF, or an ELF file with a .BTF section.
    File(&'a Path),
    /// A part of the types that has every answer, as BTF.
    Part(&'a [u8]),
}

/// An object of libbpf. Dropping it closes the descriptors of its programs and maps.
struct Object(NonNull<sys::bpf_object>);

impl Object {
    fn as_ptr(&self) -> *mut sys::bpf_object {
        self.0.as_ptr()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the pointer came from bpf_object__open_mem, and this value alone closes it.
        unsafe { sys::bpf_object__close(self.as_ptr()) };
    }
}

/// Turn a result of libbpf into an error; a failure is a negative errno.
fn check(result: c_int, what: impl FnOnce() -> String) -> Result<()> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result)).with_context(what);
    }
    Ok(())
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).with_context(|| format!("{text:?} holds a NUL byte"))
}

impl OpenObject {
    /// Open an object from memory. libbpf relocates the object against `types`. Without them, libbpf uses the running
    /// kernel's own BTF. libbpf copies all data that it needs.
    ///
    /// # Errors
    /// If libbpf refuses the object; libbpf's messages say why.
    pub fn from_bytes(object: &[u8], types: Option<Types<'_>>) -> Result<Self> {
        attach_by_type();
        let file = |bytes: &[u8]| {
            let mut file = File::from(memfd_create(c"types", MFdFlags::MFD_CLOEXEC)?);
            file.write_all(bytes).map(|()| file)
        };
        let (btf, types) = match types {
            None => (None, None),
            Some(Types::File(path)) => {
                (Some(c_string(path.to_str().ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))?)?), None)
            }
            Some(Types::Part(bytes)) => {
                let file = file(bytes).context("cannot keep the types for libbpf in memory")?;
                (Some(c_string(&format!("/proc/self/fd/{}", file.as_raw_fd()))?), Some(file))
            }
        };
        let options = sys::bpf_object_open_opts {
            sz: size_of::<sys::bpf_object_open_opts>() as _,
            object_name: NAME.as_ptr(),
            btf_custom_path: btf.as_deref().map_or(ptr::null(), CStr::as_ptr),
            ..Default::default()
        };
        let _account = Account::of(By::Libbpf);
        // SAFETY: the buffer outlives the call, and so do the options with the strings that they point to; libbpf keeps
        // copies.
        let object = unsafe { sys::bpf_object__open_mem(object.as_ptr().cast(), object.len() as _, &options) };
        match NonNull::new(object) {
            Some(object) => Ok(Self { object: Object(object), _types: types }),
            None => Err(io::Error::last_os_error()).context("libbpf cannot open the object"),
        }
    }

    /// Load only the programs that `wanted` selects. Maps that none of these programs uses are created all the same.
    pub fn select_programs(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for (program, name) in programs(&self.object) {
            // SAFETY: the program belongs to this object, which is not loaded yet.
            let result = unsafe { sys::bpf_program__set_autoload(program, wanted(&name)) };
            check(result, || format!("cannot select program {name}"))?;
        }
        Ok(())
    }

    /// Attach programs to types of the kernel's own BTF, each by its name and the number of the type. A program that is not
    /// in the list cannot be loaded, if its section says that it attaches to a type.
    pub fn attach_to_types(&mut self, programs: Vec<(String, TypeId)>) {
        *attach_types() = programs;
    }

    /// Let the verifier log how much work each program was. The log of a refused program is shorter then.
    pub fn ask_for_statistics(&mut self) -> Result<()> {
        /// BPF_LOG_STATS (include/linux/bpf_verifier.h)
        const STATISTICS: u32 = 4;
        for (program, name) in programs(&self.object) {
            // SAFETY: the program belongs to this object, which is not loaded yet.
            let result = unsafe { sys::bpf_program__set_log_level(program, STATISTICS) };
            check(result, || format!("cannot ask for statistics of program {name}"))?;
        }
        Ok(())
    }

    fn map(&self, name: &str) -> Result<NonNull<sys::bpf_map>> {
        let c_name = c_string(name)?;
        // SAFETY: the object is open and the name is NUL-terminated.
        let map = unsafe { sys::bpf_object__find_map_by_name(self.object.as_ptr(), c_name.as_ptr()) };
        NonNull::new(map).ok_or_else(|| anyhow!("the object has no map {name}").context(Exit::Object))
    }

    /// Set the capacity of a map, in entries.
    pub fn set_max_entries(&mut self, map: &str, entries: u32) -> Result<()> {
        let found = self.map(map)?;
        // SAFETY: the map belongs to this object, which is not loaded yet.
        let result = unsafe { sys::bpf_map__set_max_entries(found.as_ptr(), entries) };
        check(result, || format!("cannot give map {map} {entries} entries"))
    }

    /// Do not create this map. No loaded program reaches an instruction that uses the map.
    pub fn leave_out(&mut self, map: &str) -> Result<()> {
        let found = self.map(map)?;
        // SAFETY: the map belongs to this object, which is not loaded yet.
        let result = unsafe { sys::bpf_map__set_autocreate(found.as_ptr(), false) };
        check(result, || format!("cannot leave out map {map}"))
    }

    /// Write `bytes` at `offset` into the initial value of a map of globals, such as `.rodata`.
    pub fn set_global(&mut self, map: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        let found = self.map(map)?;
        let mut size: sys::size_t = 0;
        // SAFETY: the map belongs to this object; `size` receives the length of the memory that the result points to.
        let value = unsafe { sys::bpf_map__initial_value(found.as_ptr(), &mut size) };
        let end = offset.checked_add(bytes.len());
        if value.is_null() || end.is_none_or(|end| end > size as usize) {
            return Err(anyhow!("map {map} has no {} bytes at offset {offset}", bytes.len()).context(Exit::Object));
        }
        // SAFETY: `value` points to `size` bytes that libbpf owns until the object is closed. The range was checked,
        // and Rust memory does not overlap it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), value.cast::<u8>().add(offset), bytes.len()) };
        Ok(())
    }

    /// Create the maps, relocate and load the selected programs: with `at_once`, in several threads.
    ///
    /// # Errors
    /// The kernel's errno. [`take_messages`] then holds the verifier log, unless the kernel takes the refused program at the
    /// second attempt.
    pub fn load(self, license: &CStr, at_once: bool) -> Result<LoadedObject, io::Error> {
        let _account = Account::of(By::Libbpf);
        let errno = |result: c_int| if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
        // SAFETY: the object is open and was not loaded before.
        errno(unsafe { sys::bpf_object__prepare(self.object.as_ptr()) })?;
        // SAFETY: the programs belong to this object.
        let selected = |program| unsafe { sys::bpf_program__autoload(program) };
        let selected: Vec<_> = programs(&self.object).into_iter().filter(|(program, _)| selected(*program)).collect();
        let prepared: Vec<_> = selected.iter().map(|(program, _)| prepared(&self.object, *program)).collect();
        // SAFETY: the object is open.
        let btf_fd = unsafe { sys::bpf_object__btf_fd(self.object.as_ptr()) };
        let loaded = load_all(&prepared, &Common { license, btf_fd }, at_once).or_else(|(refused, error)| {
            // libbpf has words for the program that the kernel refuses. It loads that one alone.
            for (index, (program, _)) in selected.iter().enumerate() {
                // SAFETY: the program belongs to this object, which is not loaded yet.
                unsafe { sys::bpf_program__set_autoload(*program, index == refused) };
            }
            // SAFETY: the object is prepared and was not loaded before. Nobody reads the prepared programs after this.
            errno(unsafe { sys::bpf_object__load(self.object.as_ptr()) })?;
            Err(error)
        })?;
        let programs = selected.into_iter().map(|(_, name)| name).zip(loaded).collect();
        // libbpf holds a placeholder for a map that was left out.
        // SAFETY: the maps belong to this object.
        let map_fd = |map| unsafe { if sys::bpf_map__autocreate(map) { sys::bpf_map__fd(map) } else { -1 } };
        let open = |number: c_int| (number >= 0).then_some(number);
        let maps = maps(&self.object).map(|(map, name)| (name, open(map_fd(map)))).collect();
        Ok(LoadedObject::new(programs, maps, self.object))
    }
}

/// A program of a prepared object, as the kernel needs it. The result borrows from the object.
fn prepared(_object: &Object, program: *mut sys::bpf_program) -> Prepared<'_> {
    // SAFETY: the program belongs to the object, which is prepared. libbpf changes nothing of what it hands out here before the
    // object is loaded or closed. Its strings are NUL-terminated.
    unsafe {
        let section = CStr::from_ptr(sys::bpf_program__section_name(program)).to_bytes();
        let name = CStr::from_ptr(sys::bpf_program__name(program));
        let by_type = BY_TYPE.iter().find(|(prefix, ..)| section.starts_with(prefix.to_bytes()));
        Prepared {
            name: name.to_owned(),
            program_type: by_type.map_or_else(|| sys::bpf_program__type(program), |(_, own, _)| *own),
            attach_type: sys::bpf_program__expected_attach_type(program),
            attach_btf_id: attach_type_of(name).map_or(0, |id| id.0),
            insns: elements(sys::bpf_program__insns(program), sys::bpf_program__insn_cnt(program) as u32),
            func_info: elements(sys::bpf_program__func_info(program), sys::bpf_program__func_info_cnt(program)),
            line_info: elements(sys::bpf_program__line_info(program), sys::bpf_program__line_info_cnt(program)),
            log_level: sys::bpf_program__log_level(program),
        }
    }
}

/// Every map of an open object, created or not, with its name, in libbpf's order.
fn maps(object: &Object) -> impl Iterator<Item = (*mut sys::bpf_map, String)> {
    let mut map = ptr::null_mut();
    std::iter::from_fn(move || {
        // SAFETY: the object is open; a null map asks for the first.
        map = unsafe { sys::bpf_object__next_map(object.as_ptr(), map) };
        if map.is_null() {
            return None;
        }
        // SAFETY: the map belongs to this object; its name is NUL-terminated and lives as long as the map.
        let name = unsafe { CStr::from_ptr(sys::bpf_map__name(map)) }.to_string_lossy();
        let section = name.strip_prefix(&*NAME.to_string_lossy()).filter(|rest| rest.starts_with('.'));
        Some((map, section.unwrap_or(&name).to_owned()))
    })
    .fuse()
}

/// Every program of an open object, with its name, in the order of the object.
fn programs(object: &Object) -> Vec<(*mut sys::bpf_program, String)> {
    let mut all = Vec::new();
    let mut program = ptr::null_mut();
    loop {
        // SAFETY: the object is open; a null program asks for the first.
        program = unsafe { sys::bpf_object__next_program(object.as_ptr(), program) };
        if program.is_null() {
            return all;
        }
        // SAFETY: libbpf's program names are NUL-terminated and live as long as the object.
        let name = unsafe { CStr::from_ptr(sys::bpf_program__name(program)) };
        all.push((program, name.to_string_lossy().into_owned()));
    }
}
