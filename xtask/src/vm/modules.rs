//! Kernel modules of an unpacked kernel, and what they depend on.
//!
//! The packages hold no modules.dep (depmod makes it on installation), so the dependencies are read from the modules.

use anyhow::{Context as _, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module's file, decompressed.
#[derive(Debug)]
pub(super) struct Module {
    /// File name in the initramfs.
    pub(super) file: String,
    pub(super) bytes: Vec<u8>,
}

/// `wanted` and everything they depend on, each after its dependencies. What is built into the kernel is left out.
pub(super) fn closure(tree: &Path, wanted: &[String]) -> anyhow::Result<Vec<Module>> {
    let mut search = Search { files: BTreeMap::new(), builtin: builtin(tree)?, seen: BTreeSet::new(), order: vec![] };
    index(&tree.join("kernel"), &mut search.files)?;
    for name in wanted {
        search.add(name)?;
    }
    Ok(search.order)
}

struct Search {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    seen: BTreeSet<String>,
    order: Vec<Module>,
}

impl Search {
    fn add(&mut self, name: &str) -> anyhow::Result<()> {
        let name = name.replace('-', "_");
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else {
            if self.builtin.contains(&name) {
                return Ok(());
            }
            bail!("this kernel has no module {name}: take it off the list in vm-tests/kernels.toml");
        };
        let bytes = read(path)?;
        for dependency in depends(&bytes) {
            self.add(&dependency)?;
        }
        self.order.push(Module { file: format!("{name}.ko"), bytes });
        Ok(())
    }
}

/// The module's name if `path` is a module: `a-b.ko.xz` is `a_b`.
fn module_name(path: &Path) -> Option<String> {
    let (name, rest) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst").then(|| name.replace('-', "_"))
}

fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn builtin(tree: &Path) -> anyhow::Result<BTreeSet<String>> {
    let list = tree.join("modules.builtin");
    let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    Ok(text.lines().filter_map(|line| module_name(Path::new(line))).collect())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    let output = Command::new(tool).arg("-dc").arg(path).output().with_context(|| format!("start {tool}"))?;
    anyhow::ensure!(output.status.success(), "{tool} -dc {}: {}", path.display(), output.status);
    Ok(output.stdout)
}

/// The names in the `depends=` string of a module's .modinfo section, which holds strings that end in NUL.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return vec![];
    };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{closure, depends, module_name};
    use std::fs;
    use std::path::Path;

    #[test]
    fn dependencies_come_first_and_built_in_modules_are_left_out() {
        let tree = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        let kernel = tree.join("kernel/net");
        fs::create_dir_all(&kernel).expect("make the tree");
        fs::write(tree.join("modules.builtin"), "kernel/net/unix.ko\n").expect("write modules.builtin");
        fs::write(kernel.join("tcp_diag.ko"), b"x\0depends=inet_diag,unix\0y").expect("write a module");
        fs::write(kernel.join("inet-diag.ko"), b"x\0depends=\0y").expect("write a module");

        let modules = closure(&tree, &["tcp_diag".to_owned()]);
        let unknown = closure(&tree, &["nosuch".to_owned()]);
        fs::remove_dir_all(&tree).expect("remove the tree");

        let files: Vec<_> = modules.expect("all are known").into_iter().map(|module| module.file).collect();
        assert_eq!(files, ["inet_diag.ko", "tcp_diag.ko"]);
        assert!(unknown.expect_err("not a module").to_string().contains("nosuch"));
    }

    #[test]
    fn a_module_without_dependencies_has_none() {
        assert!(depends(b"a\0depends=\0b").is_empty());
        assert!(depends(b"no such string").is_empty());
    }

    #[test]
    fn compressed_modules_are_modules() {
        let cases = [("a/b-c.ko.xz", Some("b_c")), ("b.ko", Some("b")), ("b.ko.txt", None), ("modules.order", None)];
        for (path, expected) in cases {
            assert_eq!(module_name(Path::new(path)).as_deref(), expected, "{path}");
        }
    }
}
