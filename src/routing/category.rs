//! Governance classes of samples, named by paths.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A category's path, or the root of a subtree of categories: names separated by `/`, such as
/// `style/script/kristi`; `/` alone is the root of all.
///
/// ```
/// use gradroute::routing::CategoryPath;
/// let kristi: CategoryPath = "style/script/kristi".parse()?;
/// assert!(kristi.within(&"style/script".parse()?));
/// assert!(!kristi.within(&"style/scr".parse()?));
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CategoryPath(String);

impl CategoryPath {
    /// Whether the path lies in the subtree under `root`, `root` itself included.
    pub fn within(&self, root: &Self) -> bool {
        let below = || self.0.strip_prefix(&root.0).is_some_and(|rest| rest.starts_with('/'));
        root.0 == "/" || self == root || below()
    }

    /// Number of names: 0 for `/`.
    pub fn depth(&self) -> usize {
        if self.0 == "/" { 0 } else { self.0.split('/').count() }
    }

    /// The roots of all subtrees that hold the path, from `/` down to the path itself.
    pub fn lineage(&self) -> impl Iterator<Item = &str> {
        let ends = self.0.match_indices('/').map(|(at, _)| at).chain([self.0.len()]);
        let names = (self.0 != "/").then(|| ends.map(|end| &self.0[..end]));
        std::iter::once("/").chain(names.into_iter().flatten())
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a path is.
const EXPECTED: &str = "names without a lone `+`, separated by single `/`, such as `style/script`";

impl FromStr for CategoryPath {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self> {
        let plain = |name: &str| {
            let printed = !name.chars().any(char::is_control);
            // ` + ` joins the names of a label set.
            let joins = name.split(' ').any(|word| word == "+");
            !name.is_empty() && name.trim() == name && printed && !joins
        };
        if path == "/" || path.split('/').all(plain) {
            return Ok(Self(path.into()));
        }
        Err(Error::argument("category", EXPECTED, format!("{path:?}")))
    }
}

impl TryFrom<String> for CategoryPath {
    type Error = Error;

    fn try_from(path: String) -> Result<Self> {
        path.parse()
    }
}

impl From<CategoryPath> for String {
    fn from(path: CategoryPath) -> Self {
        path.0
    }
}

impl fmt::Display for CategoryPath {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The categories samples may have; a category's id is its index.
///
/// A sample with several labels has a category of its own, a *label set*, added by
/// [`Categories::label_set`]. Its rule: in every block and region the label whose weight has the
/// smallest magnitude decides (the lower weight, between two of opposite sign), and it is an
/// owner of a region only when every label is.
///
/// ```
/// use gradroute::routing::Categories;
/// let mut categories = Categories::new(["style/serif/gelasio", "style/script/kristi"])?;
/// let both = categories.label_set(&[1, 0])?;
/// assert_eq!(both, 2);
/// assert_eq!(categories.name(both), "style/script/kristi + style/serif/gelasio");
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    sets: Vec<Vec<CategoryPath>>,
    ids: HashMap<Vec<CategoryPath>, u32>,
}

impl Categories {
    /// One category per path, ids in the given order.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the entry that is no path, is `/`, or was there before.
    pub fn new<S: AsRef<str>>(paths: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut categories = Self::default();
        for (id, path) in paths.into_iter().enumerate() {
            let path = path.as_ref();
            let place = || format!("categories[{id}]");
            let wrong = |expected: &str| Error::argument(place(), expected, format!("{path:?}"));
            let parsed = path.parse().ok().filter(|path: &CategoryPath| path.depth() > 0);
            let parsed = parsed.ok_or_else(|| wrong(EXPECTED))?;
            if categories.insert(vec![parsed]) as usize != id {
                return Err(wrong("a path that is not in the list yet"));
            }
        }
        Ok(categories)
    }

    /// The categories with these names, ids in the given order; a name is what
    /// [`Categories::name`] gives, so label sets are among them.
    ///
    /// # Errors
    /// As [`Categories::new`].
    pub fn named<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut categories = Self::default();
        for (id, name) in names.into_iter().enumerate() {
            let name = name.as_ref();
            let wrong = |expected: &str| {
                Error::argument(format!("categories[{id}]"), expected, format!("{name:?}"))
            };
            let labels = name.split(" + ").map(|label| label.parse().ok());
            let labels: Option<Vec<CategoryPath>> = labels.collect();
            let named = labels.filter(|all| all.iter().all(|label| label.depth() > 0));
            let mut set = named.ok_or_else(|| wrong("paths joined by ` + `"))?;
            set.sort_unstable();
            set.dedup();
            if categories.insert(set) as usize != id {
                return Err(wrong("a name that is not in the list yet"));
            }
        }
        Ok(categories)
    }

    /// Id of the category of samples that carry all of these labels; added if it is new. Order
    /// and repetition do not matter, and one label is the category itself.
    ///
    /// # Errors
    /// [`Error::Argument`] naming `labels` when there are none, or the entry that is no
    /// category.
    pub fn label_set(&mut self, labels: &[u32]) -> Result<u32> {
        if labels.is_empty() {
            return Err(Error::argument("labels", "at least one category", "none"));
        }
        if let Some(n) = labels.iter().position(|&id| id as usize >= self.len()) {
            let expected = format!("an id below {}", self.len());
            return Err(Error::argument(format!("labels[{n}]"), expected, labels[n]));
        }
        let mut set: Vec<_> = labels.iter().flat_map(|&id| self.labels(id)).cloned().collect();
        set.sort_unstable();
        set.dedup();
        Ok(self.insert(set))
    }

    /// Number of categories, label sets included.
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Id of the category with this path.
    pub fn id(&self, path: &str) -> Option<u32> {
        self.ids.get(&vec![path.parse().ok()?]).copied()
    }

    /// Paths of the category's labels, sorted: one, unless it is a label set.
    ///
    /// # Panics
    /// When `id` is not below [`Categories::len`].
    pub fn labels(&self, id: u32) -> &[CategoryPath] {
        &self.sets[id as usize]
    }

    /// The path, or the labels of a set joined by ` + `.
    ///
    /// # Panics
    /// As [`Categories::labels`].
    pub fn name(&self, id: u32) -> String {
        let labels: Vec<_> = self.labels(id).iter().map(CategoryPath::as_str).collect();
        labels.join(" + ")
    }

    /// Whether all labels of the category lie in the subtree under `root`.
    ///
    /// # Panics
    /// As [`Categories::labels`].
    pub fn within(&self, id: u32, root: &CategoryPath) -> bool {
        self.labels(id).iter().all(|label| label.within(root))
    }

    /// All ids.
    pub fn ids(&self) -> std::ops::Range<u32> {
        0..self.sets.len() as u32
    }

    fn insert(&mut self, set: Vec<CategoryPath>) -> u32 {
        *self.ids.entry(set).or_insert_with_key(|set| {
            self.sets.push(set.clone());
            (self.sets.len() - 1) as u32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_end_at_a_separator() {
        let path = |text: &str| text.parse::<CategoryPath>().unwrap();
        assert!(path("style").within(&path("style")));
        assert!(path("style/a").within(&path("/")));
        assert!(!path("styles/a").within(&path("style")));
        assert!(!path("style").within(&path("style/a")));
        assert_eq!((path("/").depth(), path("a/b").depth()), (0, 2));
        let (long, root) = (path("a/bc/d"), path("/"));
        assert!(long.lineage().eq(["/", "a", "a/bc", "a/bc/d"]) && root.lineage().eq(["/"]));
        assert!(long.lineage().all(|root| long.within(&path(root))));
        for wrong in ["", "/a", "a/", "a//b", "a/ b", "a\n", "a + b", "a/b +", "+"] {
            assert!(wrong.parse::<CategoryPath>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn label_sets_are_found_again() {
        let mut categories = Categories::new(["a/x", "a/y", "b"]).unwrap();
        let set = categories.label_set(&[2, 0]).unwrap();
        assert_eq!(set, 3);
        assert_eq!(categories.label_set(&[0, 2, 0]).unwrap(), set);
        assert_eq!(categories.label_set(&[set, 2]).unwrap(), set);
        assert_eq!(categories.label_set(&[1]).unwrap(), 1);
        assert_eq!(categories.len(), 4);
        assert_eq!(
            Categories::named(categories.ids().map(|id| categories.name(id))).unwrap(),
            categories
        );
        assert!(Categories::named(["a + b", "b + a"]).is_err());
        let root = |text: &str| text.parse().unwrap();
        assert!(categories.within(0, &root("a")) && !categories.within(set, &root("a")));
        assert_eq!((categories.id("a/y"), categories.id("a")), (Some(1), None));
    }

    #[test]
    fn mistakes_name_the_entry() {
        let text = |paths: &[&str]| Categories::new(paths).unwrap_err().to_string();
        assert!(text(&["a", "b", "a"]).contains("categories[2]"));
        assert!(text(&["a", "a//b"]).contains("categories[1]"));
        assert!(text(&["/"]).contains("categories[0]"));
        let mut categories = Categories::new(["a"]).unwrap();
        assert!(categories.label_set(&[]).unwrap_err().to_string().contains("labels"));
        assert!(categories.label_set(&[0, 9]).unwrap_err().to_string().contains("labels[1]"));
    }
}
