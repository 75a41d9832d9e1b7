//! libbpf, wrapped once: it opens, sizes, relocates and loads the object. Attaching and reading are not its business.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use libbpf_sys as sys;

use super::bpf;
use super::calls::{Account, By};
use super::map::Map;
use crate::fault::Exit;

/// The object's name, with which libbpf begins those of the maps that it makes for variables.
const NAME: &CStr = c"xctl";

/// What libbpf says while it works, verifier logs included.
static MESSAGES: Mutex<Messages> = Mutex::new(Messages { text: Vec::new(), debug: false });

struct Messages {
    text: Vec<u8>,
    debug: bool,
}

fn messages() -> MutexGuard<'static, Messages> {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" {
    /// The `va_list` is passed on untouched. On x86_64 it is an array, on aarch64 a structure too large for registers:
    /// either way the caller hands over a pointer, so a pointer is what this declaration says.
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
            // SAFETY: vasprintf succeeded: `line` is a NUL-terminated string that is ours to free.
            unsafe {
                messages.text.extend_from_slice(CStr::from_ptr(line).to_bytes());
                libc::free(line.cast());
            }
        }
    }
    nix::errno::Errno::set_raw(errno);
    0
}

/// Collect libbpf's messages instead of letting it print. With `debug` also those that describe normal work.
pub fn collect_messages(debug: bool) {
    messages().debug = debug;
    // SAFETY: `collect` has the type that libbpf asks for and lives as long as the program.
    unsafe { sys::libbpf_set_print(Some(collect)) };
}

/// The messages so far, in libbpf's own words; the collection starts anew. Verifier logs may hold bytes that are not
/// UTF-8: they are replaced.
pub fn take_messages() -> String {
    String::from_utf8_lossy(&std::mem::take(&mut messages().text)).into_owned()
}

/// An object that libbpf has opened and not yet loaded.
pub struct Open {
    object: NonNull<sys::bpf_object>,
}

/// An object in the kernel. Dropping it unloads what nothing else holds.
pub struct Loaded {
    object: NonNull<sys::bpf_object>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: the pointer came from bpf_object__open_mem and is closed once: `load` forgets `self`.
        unsafe { sys::bpf_object__close(self.object.as_ptr()) };
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: the pointer came from an `Open`, which gave up its own.
        unsafe { sys::bpf_object__close(self.object.as_ptr()) };
    }
}

/// libbpf returns a negative errno.
fn check(result: c_int, what: impl FnOnce() -> String) -> Result<()> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result)).with_context(what);
    }
    Ok(())
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).with_context(|| format!("{text:?} holds a NUL byte"))
}

impl Open {
    /// Open an object from memory, to be relocated against the BTF in the file `btf` (raw BTF, or an ELF file with a
    /// .BTF section); none: the running kernel's own, which libbpf then reads once for all purposes. libbpf copies what it
    /// needs.
    ///
    /// # Errors
    /// If libbpf refuses the object; its messages say why.
    pub fn from_bytes(object: &[u8], btf: Option<&Path>) -> Result<Self> {
        let name = |path: &Path| c_string(path.to_str().ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))?);
        let btf = btf.map(name).transpose()?;
        let options = sys::bpf_object_open_opts {
            sz: size_of::<sys::bpf_object_open_opts>() as _,
            object_name: NAME.as_ptr(),
            btf_custom_path: btf.as_deref().map_or(ptr::null(), CStr::as_ptr),
            ..Default::default()
        };
        let _account = Account::of(By::Libbpf);
        // SAFETY: the buffer and the options, with the strings they point to, outlive the call; libbpf keeps copies.
        let object = unsafe { sys::bpf_object__open_mem(object.as_ptr().cast(), object.len() as _, &options) };
        match NonNull::new(object) {
            Some(object) => Ok(Self { object }),
            None => Err(io::Error::last_os_error()).context("libbpf cannot open the object"),
        }
    }

    /// Load only the programs that `wanted` names. Maps that none of them uses are created all the same.
    pub fn select_programs(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for (program, name) in programs(self.object) {
            // SAFETY: the program belongs to this object, which is not loaded yet.
            let result = unsafe { sys::bpf_program__set_autoload(program, wanted(&name)) };
            check(result, || format!("cannot select program {name}"))?;
        }
        Ok(())
    }

    /// Let the verifier say how much work each program was. What it says of a program that it refuses is less then.
    pub fn ask_for_statistics(&mut self) -> Result<()> {
        /// BPF_LOG_STATS (include/linux/bpf_verifier.h)
        const STATISTICS: u32 = 4;
        for (program, name) in programs(self.object) {
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

    /// Give a map another capacity, in entries.
    pub fn set_max_entries(&mut self, map: &str, entries: u32) -> Result<()> {
        let found = self.map(map)?;
        // SAFETY: the map belongs to this object, which is not loaded yet.
        let result = unsafe { sys::bpf_map__set_max_entries(found.as_ptr(), entries) };
        check(result, || format!("cannot give map {map} {entries} entries"))
    }

    /// Do not create this map: no program that is loaded gets to where it uses it.
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
        // SAFETY: `value` points to `size` bytes that libbpf owns until the object is closed; the range was checked, and
        // Rust memory does not overlap it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), value.cast::<u8>().add(offset), bytes.len()) };
        Ok(())
    }

    /// Create the maps, relocate and load the selected programs.
    ///
    /// # Errors
    /// With the kernel's errno; [`take_messages`] then holds the verifier log.
    pub fn load(self) -> Result<Loaded, io::Error> {
        let _account = Account::of(By::Libbpf);
        // SAFETY: the object is open and was not loaded before.
        let result = unsafe { sys::bpf_object__load(self.object.as_ptr()) };
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        let loaded = Loaded { object: self.object };
        std::mem::forget(self);
        Ok(loaded)
    }
}

impl Loaded {
    fn borrow(&self, fd: RawFd, what: impl FnOnce() -> String) -> Result<BorrowedFd<'_>> {
        if fd < 0 {
            bail!("{} is not in the kernel", what());
        }
        // SAFETY: libbpf keeps this descriptor open until the object is closed, which `self` outlives.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// The descriptor of a loaded program.
    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let c_name = c_string(name)?;
        // SAFETY: the object is loaded and the name is NUL-terminated; a program that is not found is null.
        let fd = unsafe {
            let program = sys::bpf_object__find_program_by_name(self.object.as_ptr(), c_name.as_ptr());
            if program.is_null() { -1 } else { sys::bpf_program__fd(program) }
        };
        self.borrow(fd, || format!("program {name}"))
    }

    /// The programs that are in the kernel, by name, in the order of the object.
    pub fn programs(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let fds = programs(self.object).into_iter().filter_map(|(program, name)| {
            // SAFETY: the program belongs to this object.
            let fd = unsafe { sys::bpf_program__fd(program) };
            // The others were not asked for.
            Some((name, self.borrow(fd, String::new).ok()?))
        });
        fds.collect()
    }

    /// The maps, by their names in the object: of those for variables, their section's.
    pub fn maps(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let created = self.all_maps().filter_map(|(map, name)| {
            // libbpf holds a placeholder for what it was told to leave out.
            // SAFETY: the map belongs to this object.
            let fd = unsafe { if sys::bpf_map__autocreate(map) { sys::bpf_map__fd(map) } else { -1 } };
            self.borrow(fd, String::new).ok().map(|fd| (name, fd))
        });
        created.collect()
    }

    /// The maps that were left out, by name, and the number that libbpf has for each.
    pub fn maps_left_out(&self) -> Vec<(String, usize)> {
        let all = self.all_maps().enumerate();
        // SAFETY: the map belongs to this object.
        let left_out = all.filter(|(_, (map, _))| unsafe { !sys::bpf_map__autocreate(*map) });
        left_out.map(|(number, (_, name))| (name, number)).collect()
    }

    /// Every map, created or not, with its name, in libbpf's order.
    fn all_maps(&self) -> impl Iterator<Item = (*mut sys::bpf_map, String)> {
        let mut map = ptr::null_mut();
        std::iter::from_fn(move || {
            // SAFETY: the object is open; a null map asks for the first.
            map = unsafe { sys::bpf_object__next_map(self.object.as_ptr(), map) };
            if map.is_null() {
                return None;
            }
            // SAFETY: the map belongs to this object; its name is NUL-terminated and lives as long as that.
            let name = unsafe { CStr::from_ptr(sys::bpf_map__name(map)) }.to_string_lossy();
            let section = name.strip_prefix(&*NAME.to_string_lossy()).filter(|rest| rest.starts_with('.'));
            Some((map, section.unwrap_or(&name).to_owned()))
        })
        .fuse()
    }

    /// How many runs of a program the kernel has skipped ([`bpf::ProgramInfo::skipped`]).
    ///
    /// # Errors
    /// With the kernel's errno.
    pub fn skipped(&self, name: &str) -> Result<u64> {
        let info = bpf::program_info(self.program(name)?);
        Ok(info.with_context(|| format!("cannot ask about program {name}"))?.skipped)
    }

    /// The descriptor of a map.
    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let c_name = c_string(name)?;
        // SAFETY: the object is loaded and the name is NUL-terminated.
        let fd = unsafe { sys::bpf_object__find_map_fd_by_name(self.object.as_ptr(), c_name.as_ptr()) };
        self.borrow(fd, || format!("map {name}"))
    }

    /// A map, to read and change what is in it.
    pub fn contents(&self, name: &str) -> Result<Map<'_>> {
        Map::new(self.map(name)?).with_context(|| format!("map {name}"))
    }
}

/// Every program of an object that is open, with its name, in the order of the object.
fn programs(object: NonNull<sys::bpf_object>) -> Vec<(*mut sys::bpf_program, String)> {
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
