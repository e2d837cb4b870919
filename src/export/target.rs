//! The folder that an export writes to: it is new, empty or from an earlier export, and nothing of others is overwritten.

use object_store::{Error as Store, ObjectStoreExt as _};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::store::Location;

/// The file that makes a folder a BIDS data set and names its origin.
const DESCRIPTION: &str = "dataset_description.json";

/// Our name in `GeneratedBy`.
const NAME: &str = "neurosieve";

/// Claims the folder by its description, which is the first file written: an export that was interrupted is known as ours.
/// Additions by users to the description of an earlier export are kept.
///
/// # Errors
/// [`Error::Config`] for a folder with files of others, for one among the tables, and for one inside a data set outside its
/// `derivatives/`; [`Error::Storage`] where the folder cannot be read or written.
pub(super) async fn claim(to: &Location, tables: &Location) -> Result<()> {
    if tables.contains(&to.url) || to.contains(&tables.url) {
        return refuse(to, "the result tables are there");
    }
    let earlier = match read(to, DESCRIPTION).await? {
        Some(bytes) => match serde_json::from_slice::<Value>(&bytes).ok().filter(is_ours) {
            Some(ours) => Some(ours),
            None => return refuse(to, "its dataset_description.json is not of an earlier export"),
        },
        None if holds_anything(to).await? => return refuse(to, "it is not empty, and not of an earlier export"),
        None => None,
    };
    refuse_inside_a_data_set(to).await?;
    let description = describe(earlier.clone());
    if earlier.as_ref() != Some(&description) {
        put(to, DESCRIPTION, format!("{description:#}\n").into_bytes()).await?;
    }
    Ok(())
}

/// Writes one file below the folder.
///
/// # Errors
/// [`Error::Config`] where a link below the folder leads elsewhere; [`Error::Storage`] where the file cannot be written.
pub(super) async fn put(to: &Location, name: &str, bytes: Vec<u8>) -> Result<()> {
    let path = to.path_of(name)?;
    if let Some(folder) = local(to) {
        // The root itself may be a link, which the user named. The file may be one as well: it is replaced, not followed.
        let mut below = folder;
        let parents = name.rsplit_once('/').map_or("", |(parents, _)| parents);
        for part in parents.split('/').filter(|part| !part.is_empty()) {
            below.push(part);
            if below.is_symlink() {
                return refuse(to, &format!("{} is a link, which leads elsewhere", below.display()));
            }
        }
    }
    let written = to.store.put(&path, bytes.into()).await;
    written.map(drop).map_err(|e| to.explain(&format!("write {name} to"), e))
}

fn local(to: &Location) -> Option<std::path::PathBuf> {
    to.url.to_file_path().ok().filter(|_| to.url.scheme() == "file")
}

fn refuse<T>(to: &Location, why: &str) -> Result<T> {
    Err(Error::Config(format!(
        "cannot export to {to}: {why}. Give a new or empty folder, or that of an earlier `neurosieve export`; inside a BIDS \
         data set that is derivatives/neurosieve"
    )))
}

async fn read(to: &Location, name: &str) -> Result<Option<Vec<u8>>> {
    let found = match to.store.get(&to.path_of(name)?).await {
        Ok(found) => found.bytes().await,
        Err(error) => Err(error),
    };
    match found {
        Ok(bytes) => Ok(Some(bytes.to_vec())),
        Err(Store::NotFound { .. }) => Ok(None),
        Err(error) => Err(to.explain("read", error)),
    }
}

/// True where anything is in the folder, also what a listing of objects leaves out, such as a folder.
async fn holds_anything(to: &Location) -> Result<bool> {
    if let Some(folder) = local(to) {
        return match std::fs::read_dir(&folder) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format!("cannot list {}", folder.display()), error)),
        };
    }
    let found = to.store.list_with_delimiter(Some(&to.root)).await.map_err(|e| to.explain("list", e))?;
    // A console that makes folders in a bucket leaves an empty object of the folder's name.
    Ok(!found.common_prefixes.is_empty() || found.objects.iter().any(|object| object.location != to.root))
}

/// Refuses a folder inside a data set, unless it lies in its `derivatives/`, which is where BIDS wants it.
async fn refuse_inside_a_data_set(to: &Location) -> Result<()> {
    let parts: Vec<_> = to.root.parts().collect();
    for n in (0..parts.len()).rev() {
        let above: object_store::path::Path = parts[..n].iter().cloned().collect();
        // A folder above that this user may not read is not one of the user's data sets.
        if to.store.head(&above.clone().join(DESCRIPTION)).await.is_ok() {
            return match parts[n].as_ref() {
                "derivatives" => Ok(()),
                _ => refuse(to, &format!("it is inside the data set /{above}, outside its derivatives/")),
            };
        }
    }
    Ok(())
}

/// True for a description that an export wrote, and to which nobody else added.
fn is_ours(description: &Value) -> bool {
    let makers = description["GeneratedBy"].as_array();
    makers.is_some_and(|makers| !makers.is_empty() && makers.iter().all(|maker| maker["Name"] == NAME))
}

/// The description of this version, with what else an earlier one says.
fn describe(earlier: Option<Value>) -> Value {
    let mut description = earlier.unwrap_or_else(
        || json!({ "Name": "neurosieve anomaly masks", "BIDSVersion": "1.9.0", "DatasetType": "derivative" }),
    );
    description["GeneratedBy"] = json!([{
        "Name": NAME,
        "Version": env!("CARGO_PKG_VERSION"),
        "Description": "Masked-image-modelling anomaly screening. Research use only, not a medical device."
    }]);
    description
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::ObjectStore;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use url::Url;

    use super::*;

    fn at(store: &Arc<InMemory>, path: &str) -> Location {
        let url = Url::parse(&format!("s3://bucket/{path}")).unwrap();
        Location::new(Arc::clone(store) as Arc<dyn ObjectStore>, Path::from(path), url)
    }

    async fn refused(to: &Location, tables: &Location) -> String {
        claim(to, tables).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_bucket_with_files_of_others_is_refused_and_left_as_it_is() {
        let store = Arc::new(InMemory::new());
        let tables = at(&store, "results");
        let raw = r#"{"Name":"My study","BIDSVersion":"1.9.0","Authors":["A"]}"#;
        store.put(&Path::from("study/dataset_description.json"), raw.into()).await.unwrap();
        store.put(&Path::from("other/sub-01/anat/sub-01_T1w.nii.gz"), "x".into()).await.unwrap();

        assert!(refused(&at(&store, "study"), &tables).await.contains("not of an earlier export"));
        assert!(refused(&at(&store, "other"), &tables).await.contains("not empty"));
        assert!(refused(&at(&store, "study/sub-09"), &tables).await.contains("inside the data set /study"));
        assert!(refused(&at(&store, "results/masks/x"), &tables).await.contains("result tables"));
        assert!(refused(&at(&store, ""), &tables).await.contains("result tables"));
        let kept = store.get(&Path::from("study/dataset_description.json")).await.unwrap().bytes().await.unwrap();
        assert_eq!(kept, raw.as_bytes());

        claim(&at(&store, "study/derivatives/neurosieve"), &tables).await.unwrap();
        claim(&at(&store, "new/place"), &tables).await.unwrap();
    }

    #[tokio::test]
    async fn an_earlier_export_is_updated_and_keeps_what_was_added_to_its_description() {
        let store = Arc::new(InMemory::new());
        let (to, tables) = (at(&store, "out"), at(&store, "results"));
        let own = r#"{"Name":"Ours","Authors":["A"],"GeneratedBy":[{"Name":"neurosieve","Version":"0.0.1"}]}"#;
        put(&to, DESCRIPTION, own.into()).await.unwrap();
        put(&to, "sub-01/anat/x.nii.gz", b"x".to_vec()).await.unwrap();
        claim(&to, &tables).await.unwrap();
        let kept: Value = serde_json::from_slice(&read(&to, DESCRIPTION).await.unwrap().unwrap()).unwrap();
        assert_eq!((&kept["Name"], &kept["Authors"][0]), (&json!("Ours"), &json!("A")));
        assert_eq!(kept["GeneratedBy"][0]["Version"], env!("CARGO_PKG_VERSION"));

        let chain = r#"{"Name":"fMRIPrep","GeneratedBy":[{"Name":"neurosieve"},{"Name":"fMRIPrep"}]}"#;
        put(&to, DESCRIPTION, chain.into()).await.unwrap();
        assert!(refused(&to, &tables).await.contains("not of an earlier export"));
    }
}
